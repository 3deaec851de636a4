"""The table of what broke on graphics cards is true: its tests exist, and each fails when the cure is taken out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from device_findings import FINDINGS, PAGE, Finding, rendered
from test_house import ROOT
from test_threats import run_without_guard

NAMES = [f"{index}-{re.sub(r'[^a-z]+', '-', one.what.lower())[3:50].strip('-')}" for index, one in enumerate(FINDINGS)]


def test_the_page_is_made_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == rendered(), "run python tests/device_findings.py"


@pytest.mark.parametrize("finding", FINDINGS, ids=NAMES)
def test_the_test_and_the_cure_of_a_finding_exist(finding: Finding) -> None:
    file, _, name = finding.test.partition("::")
    assert f"def {name.partition('[')[0]}" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert finding.guard in (ROOT / finding.file).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("finding", FINDINGS, ids=NAMES)
def test_a_test_fails_without_its_cure(finding: Finding, tmp_path: Path) -> None:
    run = run_without_guard(finding, tmp_path)
    assert run.returncode == 1 and ("failed" in run.stdout or "error" in run.stdout), run.stdout[-2000:] + run.stderr
