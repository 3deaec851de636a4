"""Tables whose rows name a test and the guard in the product that it needs: the test fails when that is taken out.

``ATELIER_RECORD=1 python tests/guards.py`` takes out all guards of the attack table, one after the other, and writes
into docs/robustness.md how many tests failed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
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
    run = run_without_guard(row, folder)
    assert run.returncode == 1 and "failed" in run.stdout, run.stdout[-2000:] + run.stderr


def run_without_guard(row: Threat, folder: Path) -> subprocess.CompletedProcess[str]:
    """Copy the tree without a row's guard into an empty folder, and run the row's test there."""
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
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
                           "--timeout=500", f"tests/{row.test}"], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(links.parent)})   # fmt: skip


def prove(rows: Sequence[Threat], shown: Path) -> int:
    """Take out the guard of each row; returns how many tests failed, as they should.

    What was shown is kept in a file, a line for each row, and is not shown again while the row, its test's file and the
    guard's file are the same: a run that was cut goes on where it was.
    """
    known = set(shown.read_text(encoding="utf-8").splitlines()) if shown.exists() else set()
    return sum(_proves(row, shown, known) for row in rows)


def _proves(row: Threat, shown: Path, known: set[str]) -> bool:
    digest = sha256(repr(row).encode())
    for file in (ROOT / "tests" / row.test.partition("::")[0], ROOT / row.file):
        digest.update(file.read_bytes())
    if any(line.startswith(digest.hexdigest()) for line in known):
        return True
    with tempfile.TemporaryDirectory() as folder:
        run = run_without_guard(row, Path(folder))
    proves = run.returncode == 1 and "failed" in run.stdout
    said = " ".join(line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR")))
    print("proves" if proves else "PROVES NOTHING", f"{row.what}: {said or run.stdout[-1000:]}", flush=True)
    if proves:
        with shown.open("a", encoding="utf-8") as file:
            file.write(f"{digest.hexdigest()} {row.what}\n")
    return proves


if __name__ == "__main__":
    from robustness import record
    from threats import THREATS

    rows = [row for rows in THREATS.values() for row in rows]
    (ROOT / "build").mkdir(exist_ok=True)
    failed = prove(rows, ROOT / "build" / "guards.txt")
    record("Attack table: each guard taken out in a copy of the tree", [
        {"rows": len(rows), "tests that failed": failed, "that passed all the same": len(rows) - failed}],
        "python tests/guards.py")   # fmt: skip
