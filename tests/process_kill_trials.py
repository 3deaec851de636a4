"""A server that submits runs, its worker and its children are killed at random: no run is lost, none is done twice.

The server is a fork that does what one does with jobs; worker and queue are the real ones; the child is a stand-in.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from processes import forked, until
from stand_in_child import child_command, starts

from atelier.app.jobs import child_process, worker, worker_process
from atelier.app.jobs.jobs import list_runs, resume, submit, worker_alive
from atelier.app.jobs.worker import run_worker
from atelier.app.jobs.worker_process import worker_for_server
from atelier.app.store.home import Home, HomeError
from atelier.training.config import run_folder
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig

JOBS = 4     # of one trial
STEPS = 20
# Each step needs the sum of those before it; one process at a time may work on a run, as with a real training.
CHILD = """
import fcntl
lock = (folder / "process.lock").open("w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(4)
def write(path, text):
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)
saved, name = folder / "checkpoints" / "step", folder.name.split("-", 3)[-1]
first, total = map(int, saved.read_text().split()) if saved.exists() else (0, 0)
say("resumed", step=first) if first else say("preparing", what="Starting")
for step in range(first + 1, 21):
    (folder / "heartbeat").touch()
    total += step
    say("stepped", step=step, of=20, loss=0.5, prior_loss=0.0, lr=0.1, seconds=0.01)
    write(saved, f"{step} {total}")
    say("saved", step=step, path="checkpoints/step")
    time.sleep(0.02)
write(folder.parent.parent / "adapters" / f"{name}.txt", str(total))
say("finished", step=20, path=f"{name}.txt", seconds=1.0)
(folder / "heartbeat").unlink(missing_ok=True)
"""


@dataclass(slots=True)
class ProcessKillFigures:
    """What came of a series of trials."""

    trials: int = 0
    runs: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"server": 0, "worker": 0, "child": 0})
    lost: int = 0        # runs that were submitted and are not done
    doubled: int = 0     # runs that were done twice, or that came out of one submission
    different: int = 0   # results that are not those of an undisturbed run
    left: int = 0        # workers that their servers have left behind
    faults: list[str] = field(default_factory=list)


def short_waits(patch: pytest.MonkeyPatch) -> None:
    """Seconds in place of half minutes; the processes inherit them."""
    for module, name, seconds in (
        (run_folder, "STALE_SECONDS", 3.0), (run_folder, "HEARTBEAT_SECONDS", 0.2), (worker, "LOOK_SECONDS", 0.5),
        (child_process, "STALE_SECONDS", 3.0), (child_process, "WATCH_SECONDS", 0.1),
        (child_process, "GRACE_SECONDS", 0.5), (worker_process, "RESTART_SECONDS", 0.2),
    ):   # fmt: skip
        patch.setattr(module, name, seconds)


def run_trial(home: Home, folder: Path, number: int, kills: int, figures: ProcessKillFigures) -> None:
    """Submit runs, kill processes meanwhile, and count what came of it."""
    dice, command = random.Random(number), child_command(folder, CHILD)
    server = forked(_serve, home, command)
    for _ in range(kills):
        time.sleep(dice.uniform(0.0, 0.8))
        victim = dice.choice(("server", "worker", "child"))
        figures.kills[victim] += _kill(server.pid if victim == "server" else _pid(home, victim))
        if victim == "server":
            server.join()
            server = forked(_serve, home, command)
    try:
        until(lambda: _is_over(home), 120)
    except AssertionError:
        figures.faults.append(f"trial {number}: {[(run.id, run.state, run.message) for run in list_runs(home)]}")
    finally:
        (home.path / "end").touch()
        server.join()
    _judge(home, number, figures)


class _Forked:
    """A forked worker, as a server holds it."""

    def __init__(self, home: Home, command: child_process.Command) -> None:
        self._process = forked(_work, home, command, worker_process.describe_server())
        self.pid = self._process.pid
        self.terminate = self._process.terminate

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()


def _work(home: Home, command: child_process.Command, server: str) -> None:
    os.setsid()
    os.environ[worker_process._SERVER] = server
    with suppress(HomeError):   # another one is there
        run_worker(home, command)


def _serve(home: Home, command: child_process.Command) -> None:
    """Submit what has not been submitted yet, as a person at a page does, and keep a worker running."""
    submitting = threading.Lock()   # a fork beside a thread that holds a lock of SQLite's would wait for it for ever

    def spawn(home: Home) -> _Forked:
        with submitting:
            return _Forked(home, command)

    worker_process._start = spawn   # type: ignore[assignment]
    with worker_for_server(home):
        for number in range(JOBS):
            with submitting:
                if f"fox-{number}" not in {run.name for run in list_runs(home)}:
                    submit(home, TrainConfig(name=f"fox-{number}", steps=STEPS))
            time.sleep(0.1)
        until((home.path / "end").exists, 300)


def _pid(home: Home, victim: str) -> int | None:
    if victim == "worker":
        with suppress(OSError, ValueError):
            return json.loads((home.state / "worker.json").read_text())[0][0]
        return None
    pids = [start[0] for path in home.runs.glob("2*") for start in starts(RunFolder(path))]
    return next((pid for pid in pids if psutil.pid_exists(pid)), None)


def _kill(pid: int | None) -> bool:
    if not pid or not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def _is_over(home: Home) -> bool:
    """Whether all is done; what was interrupted a second time, a person resumes."""
    runs = list_runs(home)
    for run in runs:
        if run.state == "interrupted":
            with suppress(HomeError):   # it is done by now
                resume(home, run.id)
    return len(runs) >= JOBS and all(run.state == "done" for run in runs)


def _judge(home: Home, number: int, figures: ProcessKillFigures) -> None:
    runs = list_runs(home)
    ends = [sum(isinstance(event, Finished) for _, event in RunFolder(home.runs / run.id).events()) for run in runs]
    results = [path.read_text() for path in home.adapters.glob("*.txt")]
    lost, doubled = JOBS - sum(run.state == "done" for run in runs), sum(end > 1 for end in ends) + len(runs) - JOBS
    different = sum(result != str(sum(range(STEPS + 1))) for result in results) + abs(JOBS - len(results))
    figures.trials, figures.runs = figures.trials + 1, figures.runs + len(runs)
    figures.lost, figures.doubled = figures.lost + lost, figures.doubled + doubled
    figures.different += different
    figures.left += (left := worker_alive(home))
    if lost or doubled or different or left:
        figures.faults.append(f"trial {number}: lost {lost}, doubled {doubled}, different {different}, left {left}")
