"""Grids of drawings as jobs: they wait in the queue beside trainings, and go on when a page or the server ends.

A grid's job has a folder of its own, ``grids/grid-<id>/``, with events, a heartbeat, commands and a log as a run's.
What is drawn stands in the grid's file, so that a job that was ended in any way goes on with the next cell.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.grid_folders import job_folder
from atelier.app.jobs.jobs import auto_resume_marker, queued_runs
from atelier.app.jobs.queue import open_queue
from atelier.app.store.home import Home, HomeError, explain_write_errors
from atelier.training.config.events import Failed, Finished, Interrupted, Stopped
from atelier.training.config.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class GridJob:
    """What a page shows of a grid's job."""

    state: str          # none queued drawing stopped interrupted failed done
    message: str = ""   # its place in the queue, or why it ended

    @property
    def is_over(self) -> bool:
        """Nothing more will happen unless somebody starts it again."""
        return self.state not in ("queued", "drawing")


def submit_grid(home: Home, id: str) -> None:
    """Put a grid into the queue, from the first cell that is missing; one that waits or is drawn is left alone.

    Raises:
        HomeError: the home can't be written.
    """
    if not grid_job(home, id).is_over:
        return
    run = make_job_folder(home, id)
    with open_queue(home) as queue:
        queue.add(run, Action.RESUME if run.events() else Action.START)


def make_job_folder(home: Home, id: str) -> RunFolder:
    """The folder of a grid's job, ready for a process to work in it.

    Raises:
        HomeError: it can't be written.
    """
    run = job_folder(home, id)
    with explain_write_errors(home.grids):
        (run.path / "control").mkdir(parents=True, exist_ok=True)
        auto_resume_marker(run).unlink(missing_ok=True)
    run.take_command("cancel")   # to the process that has ended
    return run


def cancel_grid(home: Home, id: str) -> None:
    """Remove a grid from the queue, or let its process end between two steps; what is drawn stays."""
    run = job_folder(home, id)
    if grid_job(home, id).is_over:
        return
    with open_queue(home) as queue:
        queue.remove(run)
    run.send_command("cancel")
    if not run.is_alive():
        run.append(Stopped(0, ""))


def grid_job(home: Home, id: str) -> GridJob:
    """How the job of a grid is."""
    run = job_folder(home, id)
    if not run.path.is_dir():
        return GridJob("none")
    found = read_grid_job(run)
    if not found.is_over and found.state != "queued":
        return found
    waiting = _waiting(home)
    if run.id in waiting:
        return GridJob("queued", f"Number {list(waiting).index(run.id) + 1} in the queue.")
    return found


def read_grid_job(run: RunFolder) -> GridJob:
    """The state of a grid's job as its folder says it."""
    if run.is_alive():
        return GridJob("drawing")
    events = run.events()
    match events[-1][1] if events else None:
        case None:
            return GridJob("queued", "Waiting for the worker.")
        case Finished():
            return GridJob("done")
        case Stopped():
            return GridJob("stopped")
        case Failed(message):
            return GridJob("failed", message)
        case Interrupted(message):
            return GridJob("interrupted", message)
        case _:
            return GridJob("interrupted", "The drawing ended without giving a reason. Press Continue.")


def grid_command(run: RunFolder, _adapters: Path, _resume: bool) -> list[str]:
    """The command line of the process that draws a grid."""
    return [sys.executable, "-m", "atelier.app.services.grid_process", str(run.path)]


def _waiting(home: Home) -> Mapping[str, Action]:
    try:
        return queued_runs(home)
    except HomeError:   # the Jobs page says what is wrong with the queue
        return {}
