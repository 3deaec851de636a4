"""The attack table is true: its tests exist, and each fails when the guard of its row is taken out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_house import ROOMS, ROOT
from threats import PAGE, THREATS, Threat, rendered

ROWS = [threat for threats in THREATS.values() for threat in threats]
NAMES = [re.sub(r"\W+", "-", threat.what)[:60].strip("-") for threat in ROWS]


def test_the_page_is_made_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == rendered(), "run python tests/threats.py"


@pytest.mark.parametrize("threat", ROWS, ids=NAMES)
def test_the_test_of_a_threat_exists(threat: Threat) -> None:
    file, _, name = threat.test.partition("::")
    assert f"def {name.partition('[')[0]}" in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("threat", ROWS, ids=NAMES)
def test_a_test_fails_without_its_guard(threat: Threat, tmp_path: Path) -> None:
    run = run_without_guard(threat, tmp_path)
    assert run.returncode == 1 and ("failed" in run.stdout or "error" in run.stdout), run.stdout[-2000:] + run.stderr


def run_without_guard(threat: Threat, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the test of a row in a copy of the tree that lacks its guard."""
    for name in (*ROOMS, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("assets", "docs", "constraints.txt", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    links = folder / "build" / "types" / "atelier"
    links.mkdir(parents=True)
    for room in (*ROOMS, "assets"):
        (links / room).symlink_to(folder / room)
    path = folder / threat.file
    text = path.read_text(encoding="utf-8")
    assert threat.guard in text, f"{threat.file} has changed: name the guard anew in the table"
    path.write_text(text.replace(threat.guard, threat.gone), encoding="utf-8")
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
                           f"tests/{threat.test}"], cwd=folder, capture_output=True, text=True, timeout=580,
                          env={**os.environ, "PYTHONPATH": str(links.parent)})   # fmt: skip
