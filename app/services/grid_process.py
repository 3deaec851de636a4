"""The process that draws a grid: ``python -m atelier.app.services.grid_process FOLDER``, started by the worker."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from atelier.app.jobs.child_process import BUSY
from atelier.app.jobs.grid_folders import grid_id
from atelier.app.services.engine import Engine
from atelier.app.services.grid import draw_grid, read_grid
from atelier.app.store.home import Home, open_home
from atelier.app.store.preferences import drawing_device
from atelier.app.text import grid as words
from atelier.training.base_models.device import device_named
from atelier.training.base_models.device_lock import DeviceLock
from atelier.training.config.events import Event, Failed, Finished, Preparing, Stopped
from atelier.training.config.run_folder import RunBusyError, RunFolder

_WAIT_SECONDS = 1.0


def draw_grid_job(home: Home, run: RunFolder, engine: Engine) -> Event:
    """Draw what is missing in a grid until it is complete or somebody cancels it; returns the final event."""
    started, id, lock = time.monotonic(), grid_id(run), DeviceLock(device_named(drawing_device(home)))
    cancelled: list[str] = []

    def is_wanted() -> bool:
        """Look for the command to end; it is taken once."""
        if (text := run.take_command("cancel")) is not None:
            cancelled.append(text)
        return not cancelled

    try:
        grid = read_grid(home, id)
        while not lock.acquire(str(grid.recipe.get("prompt", id))[:60], run.path):
            if not is_wanted():
                return Stopped(0, "")
            time.sleep(_WAIT_SECONDS)
        for _ in draw_grid(home, engine, id, is_wanted):
            pass   # each cell is stored by then
        grid = read_grid(home, id)
        done = sum(bool(cell.picture or cell.problem) for cell in grid.cells)
        return Finished(done, "", time.monotonic() - started) if grid.is_complete else Stopped(done, "")
    except ValueError as error:   # Atelier's own errors, written for people
        return Failed(str(error))
    except Exception as error:
        logging.getLogger(__name__).exception("The grid %s can't be drawn", id)
        return Failed(words.unexpected(f"{type(error).__name__}: {error}", str(run.path / "log.txt")))
    finally:
        lock.release()


def draw_here(home: Home, run: RunFolder) -> Event:
    """Draw a grid in this process, with its events in the job's folder; returns the final event.

    Raises:
        RunBusyError: another process draws it.
    """
    with run.lock(), run.heartbeat():
        run.append(Preparing("Loading the base model"))
        last = draw_grid_job(home, run, Engine.of_home(home))
        run.append(last)
    return last


def main(folder: Path) -> int:
    """Draw one grid; returns the exit code."""
    try:
        draw_here(open_home(folder.parent.parent), RunFolder(folder))
    except RunBusyError:
        return BUSY
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
