"""Tables whose rows name a test and the guard in the product that it needs: the test fails when that is taken out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from test_house import ROOMS, ROOT
from threats import Threat


def row_names(rows: Sequence[Threat]) -> list[str]:
    """A short name for each row of a table."""
    return [f"{at}-" + re.sub(r"\W+", "-", row.what.lower())[:50].strip("-") for at, row in enumerate(rows)]


def assert_test_and_guard_exist(row: Threat) -> None:
    """Compare a row with the files that it names."""
    file, _, name = row.test.partition("::")
    assert f"def {name.partition('[')[0]}" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert row.guard in (ROOT / row.file).read_text(encoding="utf-8"), f"name the guard in {row.file} anew in the table"


def assert_test_fails_without_guard(row: Threat, folder: Path) -> None:
    """Run the test of a row in a copy of the tree that lacks its guard.

    A test that was skipped, that was not found or whose file can't be imported has not failed.
    """
    for name in (*ROOMS, "tests"):   # with what is compiled already: it takes a second to do again
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("assets", "docs", "constraints.txt", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    links = folder / "build" / "types" / "atelier"
    links.mkdir(parents=True)
    for room in (*ROOMS, "assets"):
        (links / room).symlink_to(folder / room)
    path = folder / row.file
    path.write_text(path.read_text(encoding="utf-8").replace(row.guard, row.gone), encoding="utf-8")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
                          f"tests/{row.test}"], cwd=folder, capture_output=True, text=True, timeout=580,
                         env={**os.environ, "PYTHONPATH": str(links.parent)})   # fmt: skip
    assert run.returncode == 1 and "failed" in run.stdout, run.stdout[-2000:] + run.stderr
