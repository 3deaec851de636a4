"""The table of what broke on graphics cards is true: its tests exist, and each fails when the cure is taken out."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_findings import CHECKPOINTS, FINDINGS, PAGE, Finding, rendered
from guards import assert_test_and_guard_exist, assert_test_fails_without_guard, row_names

ROWS = (*FINDINGS, *CHECKPOINTS)


def test_the_page_is_made_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == rendered(), "run python tests/device_findings.py"


@pytest.mark.parametrize("finding", ROWS, ids=row_names(ROWS))
def test_the_test_and_the_cure_of_a_finding_exist(finding: Finding) -> None:
    assert_test_and_guard_exist(finding)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("finding", ROWS, ids=row_names(ROWS))
def test_a_test_fails_without_its_cure(finding: Finding, tmp_path: Path) -> None:
    assert_test_fails_without_guard(finding, tmp_path)
