"""The attack table is true: its tests exist, and each fails when the guard of its row is taken out."""

from __future__ import annotations

from pathlib import Path

import pytest
from guards import assert_test_and_guard_exist, assert_test_fails_without_guard, row_names
from threats import PAGE, THREATS, Threat, rendered

ROWS = [threat for threats in THREATS.values() for threat in threats]


def test_the_page_is_made_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == rendered(), "run python tests/threats.py"


@pytest.mark.parametrize("threat", ROWS, ids=row_names(ROWS))
def test_the_test_and_the_guard_of_a_threat_exist(threat: Threat) -> None:
    assert_test_and_guard_exist(threat)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("threat", ROWS, ids=row_names(ROWS))
def test_a_test_fails_without_its_guard(threat: Threat, tmp_path: Path) -> None:
    assert_test_fails_without_guard(threat, tmp_path)
