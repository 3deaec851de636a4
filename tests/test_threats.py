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
    for folder in (*ROOMS, "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("assets", "docs", "constraints.txt", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    links = tmp_path / "build" / "types" / "atelier"
    links.mkdir(parents=True)
    for room in (*ROOMS, "assets"):
        (links / room).symlink_to(tmp_path / room)
    path = tmp_path / threat.file
    text = path.read_text(encoding="utf-8")
    assert threat.guard in text, f"{threat.file} has changed: name the guard anew in tests/threats.py"
    path.write_text(text.replace(threat.guard, threat.gone), encoding="utf-8")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
                          f"tests/{threat.test}"], cwd=tmp_path, capture_output=True, text=True, timeout=580,
                         env={**os.environ, "PYTHONPATH": str(links.parent)})   # fmt: skip
    assert run.returncode == 1 and ("failed" in run.stdout or "error" in run.stdout), run.stdout[-2000:] + run.stderr
