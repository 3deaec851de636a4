"""Where the jobs of grids lie, and how the queue and scripts name them."""

from __future__ import annotations

from pathlib import Path

from atelier.app.store.home import Home
from atelier.training.config.run_folder import RunFolder

_PREFIX = "grid-"


def job_folder(home: Home, id: str) -> RunFolder:
    """The folder of a grid's job, by the grid's id."""
    return RunFolder(home.grids / job_name(id))


def job_name(id: str) -> str:
    """The job of a grid, as the queue and scripts name it."""
    return f"{_PREFIX}{id}"


def queued_folder(home: Home, queue_id: str) -> RunFolder:
    """The folder that a message of the queue is about: of a grid's job, or of a run."""
    return RunFolder((home.grids if queue_id.startswith(_PREFIX) else home.runs) / Path(queue_id).name)


def is_grid(run: RunFolder) -> bool:
    """Whether a folder is that of a grid's job."""
    return run.id.startswith(_PREFIX)


def grid_id(run: RunFolder) -> str:
    """The grid that a job draws."""
    return run.id.removeprefix(_PREFIX)


def grid_file(run: RunFolder) -> Path:
    """The file of the grid that a job draws."""
    return run.path.with_name(f"{grid_id(run)}.json")


def grid_of(home: Home, queue_id: str) -> str:
    """The grid that a message of the queue or a script names by its job; empty for what is none."""
    run = queued_folder(home, queue_id)
    return grid_id(run) if is_grid(run) and run.path.is_dir() else ""


def grid_folders(home: Home) -> list[RunFolder]:
    """The jobs of all grids, oldest first."""
    return [RunFolder(path) for path in sorted(home.grids.glob(f"{_PREFIX}*")) if path.is_dir()]
