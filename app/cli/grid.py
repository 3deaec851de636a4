"""``atelier grid``: draw a picture again and again while settings change, in this process, as the Grid page does."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from atelier.adapters.core.settings import SettingError
from atelier.app.jobs.grid_folders import job_folder
from atelier.app.jobs.grid_jobs import grid_job, make_job_folder
from atelier.app.services.grid import Axis, Grid, new_grid, parse_axis, read_grid
from atelier.app.services.grid_picture import write_labelled_picture
from atelier.app.services.grid_process import draw_here
from atelier.app.store.home import Home
from atelier.app.text import grid as words
from atelier.training.config.events import Failed, Finished, Stopped


def run_grid(home: Home, arguments: Namespace) -> dict[str, Any]:
    """Draw a grid, or what is missing in one; returns what to print, with ``error`` where it could not be finished.

    Raises:
        HomeError, BaseError, SettingError: what was typed can't be used.
    """
    grid = _grid(home, arguments)
    if not grid_job(home, grid.id).is_over:
        return {"grid": grid.id, "error": words.DRAWN_ELSEWHERE}
    run = make_job_folder(home, grid.id)
    try:
        last = draw_here(home, run)
    except KeyboardInterrupt:
        run.append(Stopped(0, ""))   # else a worker would go on with it
        raise
    if not isinstance(last, Finished):
        return {"grid": grid.id, "error": last.message if isinstance(last, Failed) else words.STOPPED}
    grid, file = read_grid(home, grid.id), write_labelled_picture(home, read_grid(home, grid.id))
    if arguments.out is not None:
        file = Path(shutil.copyfile(file, arguments.out))
    cells = [{"values": list(cell.values), "picture": cell.picture, "problem": cell.problem} for cell in grid.cells]
    return {"grid": grid.id, "file": str(file), "cells": cells}


def _grid(home: Home, arguments: Namespace) -> Grid:
    """The grid that was typed: a new one around a picture, or one that is to be continued."""
    if job_folder(home, arguments.picture).path.is_dir() and not arguments.axes:
        return read_grid(home, arguments.picture)
    file = Path(arguments.picture)
    axes = [_axis(typed, arguments.adapter) for typed in arguments.axes]
    return new_grid(home, file if file.is_file() else arguments.picture, axes)


def _axis(typed: str, adapter: str) -> Axis:
    kind, equals, values = typed.partition("=")
    if not equals:
        raise SettingError(f"--vary needs a setting and its values, such as seed=1,2,3, not {typed!r:.80}.")
    return parse_axis(kind.strip(), values, adapter)
