"""The script for a lent card (``make gpu``): it runs from end to end on the simulated device, and its page is made."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from test_house import ROOT

PARTS = ("kernels", "tests", "steps", "training", "memory", "xl training", "click to file")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_without_a_card() -> None:
    run = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--minutes", "28"], cwd=ROOT,
                         capture_output=True, text=True)   # fmt: skip
    found: dict[str, dict] = {}
    for line in run.stdout.splitlines():
        found |= json.loads(line)
    assert tuple(found) == PARTS and not any("error" in part for part in found.values()), found
    assert run.returncode == 0, run.stderr
    assert found["memory"]["sdxl, 24 GB"]["planned_gb"] > 0
    assert found["training"]["recorded"]["steps"] == found["training"]["not recorded"]["steps"] == 3
