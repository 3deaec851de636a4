"""Two hundred short jobs, one after the other: the server and the worker grow no further.

``ATELIER_RECORD=1 pytest -m slow -s tests/app/jobs/test_soak.py`` writes what it measured into docs/robustness.md.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from processes import until
from robustness import record
from serving import served

from atelier.app.jobs.jobs import list_runs, submit, worker_alive
from atelier.app.store.home import Home, open_home
from atelier.training.config.train_config import TrainConfig

JOBS, WARM_UP = 200, 40   # after so many jobs, everything that stays has been loaded
# The worker, with a child that ends at once in place of a training: it is the worker that is watched.
WORKER = """
import sys
from pathlib import Path
from atelier.app.jobs.worker import run_worker
from atelier.app.store.home import open_home
child = Path(sys.argv[2])
run_worker(open_home(Path(sys.argv[1])), lambda run, adapters, again: [sys.executable, "-S", str(child), str(run.path)])
"""
CHILD = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "events.jsonl").open("a") as file:
    for event in ({"event": "stepped", "step": 1, "of": 1, "loss": 0.5, "prior_loss": 0.0, "lr": 0.1, "seconds": 0.1},
                  {"event": "finished", "step": 1, "path": "fox.safetensors", "seconds": 1.0}):
        file.write(json.dumps({"time": time.time(), **event}) + "\\n")
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[psutil.Process]:
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", WORKER, str(tmp_path / "home"), str(tmp_path / "child.py")]
    process = subprocess.Popen(command)
    yield psutil.Process(process.pid)
    process.terminate()
    process.wait()


def figures(process: psutil.Process) -> tuple[float, int]:
    """Memory in MB and open files."""
    return process.memory_info().rss / 1e6, process.num_fds()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_jobs_leave_nothing_behind(tmp_path: Path, worker: psutil.Process) -> None:
    home = open_home(tmp_path / "home")
    until(lambda: worker_alive(home), 120)
    with served(home) as (web, server):
        run_jobs(home, 0, WARM_UP, web)
        before = {"worker": figures(worker), "server": figures(server)}
        run_jobs(home, WARM_UP, JOBS, web)
        after = {"worker": figures(worker), "server": figures(server)}
    rows = [{"process": name, "memory before (MB)": f"{before[name][0]:.0f}", "after (MB)": f"{after[name][0]:.0f}",
             "growth (%)": f"{100 * (after[name][0] / before[name][0] - 1):.1f}", "open files before": before[name][1],
             "after": after[name][1]} for name in before]   # fmt: skip
    record(f"Soak: {JOBS} short jobs, of which {WARM_UP} to warm up", rows)
    for name, (memory, files) in before.items():
        assert after[name][0] <= 1.05 * memory and after[name][1] <= 1.05 * files, name


def run_jobs(home: Home, start: int, end: int, web: httpx.Client) -> None:
    """Submit jobs ten at a time, and look at their page meanwhile."""
    for first in range(start, end, 10):
        for number in range(first, first + 10):
            submit(home, TrainConfig(name=f"fox-{number}", steps=1))
        until(lambda: all(run.state == "done" for run in list_runs(home)), 300)
        assert web.get("/jobs").status_code == 200
