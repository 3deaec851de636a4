"""How far a grid is: its job and its cells, read once or followed to the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from atelier.app.jobs.grid_jobs import GridJob, grid_job
from atelier.app.services.grid import Grid, read_grid
from atelier.app.store.home import Home

_LOOK_SECONDS = 0.5


class GridProgress(NamedTuple):
    """A grid's job, and how many of its cells are over."""

    job: GridJob
    done: int
    of: int


def grid_progress(home: Home, grid: Grid) -> GridProgress:
    """How far a grid is that was just read."""
    done = sum(bool(cell.picture or cell.problem) for cell in grid.cells)
    return GridProgress(grid_job(home, grid.id), done, len(grid.cells))


def follow_grid(home: Home, id: str) -> Iterator[GridProgress]:
    """Yield how far a grid is, whenever that has changed, until its job is over.

    Raises:
        HomeError: there is no such grid.
    """
    last = None
    while last is None or not last.job.is_over:
        # The job first: its last cell is stored before it ends.
        job, grid = grid_job(home, id), read_grid(home, id)
        now = grid_progress(home, grid)._replace(job=job)
        if now != last:
            yield now
        last = now
        if not job.is_over:
            time.sleep(_LOOK_SECONDS)
