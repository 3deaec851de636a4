"""Jobs: submit, resume and cancel training runs and compressions, and read their states."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

from atelier.adapters.core.disk_space import space_shortage
from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.queue import is_shared, open_queue
from atelier.app.store.home import Home, HomeError, explain_write_errors, new_base_name, new_name, time_id
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Stopped
from atelier.training.config.run_folder import COMMANDS, RunFolder, RunStatus, status
from atelier.training.config.train_config import TrainConfig

MIN_RUN_BYTES = 50_000_000   # for events, previews and two checkpoints of a small adapter; a run waits for more itself
MAX_WAITING = 500   # runs that are not over: whoever reaches the page can't fill the disk with copies of pictures


def submit(home: Home, config: TrainConfig | CompressConfig) -> RunFolder:
    """Make a run and put it into the queue.

    Raises:
        HomeError: its name can't be used or is taken, or the home can't be written.
    """
    run = new_run(home, config)
    try:
        with open_queue(home) as queue:
            queue.add(run, Action.START)
    except HomeError:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def new_run(home: Home, config: TrainConfig | CompressConfig, *, started: bool = False) -> RunFolder:
    """Make the folder of a new run. With ``started`` it counts as running at once, so that no worker starts it.

    Raises:
        HomeError: its name can't be used or is taken, too many runs wait, little of the disk is free, or the home can't
            be written.
    """
    if shortage := space_shortage(home.runs, MIN_RUN_BYTES):
        raise HomeError(f"A run can't start. {shortage}")
    busy = frozenset(state.name for state in list_runs(home) if not state.is_over)
    if len(busy) >= MAX_WAITING:
        raise HomeError(f"{len(busy)} runs are waiting, which is the limit. Cancel some, or wait for them.")
    check_name = new_base_name if isinstance(config, CompressConfig) else new_name
    start = None
    if isinstance(config, TrainConfig) and config.continue_from:
        from atelier.app.jobs.continue_adapter import continued_config, find_start

        start = find_start(home, config.continue_from)
        config = continued_config(config, start)
    id = f"{time_id()}-{check_name(home, config.name, busy).replace(' ', '-')}"
    # Under a hidden name until it is complete, so that nobody reads a run without a recipe.
    partial = home.runs / f".{id}"
    with explain_write_errors(home.runs):
        try:
            run = RunFolder.create(partial, config)
            if start:
                shutil.copyfile(start.path, run.start_adapter)   # it may be changed or deleted before the run ends
            if started:
                (partial / "heartbeat").touch()
            return RunFolder(partial.rename(home.runs / id))
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def resume(home: Home, id: str) -> RunFolder:
    """Queue a run to continue from its last checkpoint; one that runs or waits already is left alone.

    Raises:
        HomeError: there is no such run, or it is done.
    """
    run, state = find_run(home, id), run_status(home, id)
    if state.is_over:
        prepare_resume(home, state)
        with open_queue(home) as queue:
            queue.add(run, Action.RESUME)
    return run


def prepare_resume(home: Home, state: RunStatus) -> RunFolder:
    """Make a run that is over ready to continue.

    Raises:
        HomeError: it is done.
    """
    if state.state == "done":
        raise HomeError(f"The run {state.name!r} is done, so there is nothing to resume.")
    run = find_run(home, state.id)
    for name in COMMANDS:
        run.take_command(name)   # commands to the process that has ended
    auto_resume_marker(run).unlink(missing_ok=True)
    return run


def move(home: Home, id: str, places: int) -> None:
    """Move a waiting run in the queue: -1 is one place sooner, 1 one place later; it never leaves the queue.

    Raises:
        HomeError: the run is not waiting.
    """
    with open_queue(home) as queue:
        order = list(queue.waiting())
        if id not in order:
            raise HomeError("This run is not waiting in the queue, so it can't be moved.")
        place = order.index(id)
        order.insert(max(0, place + places), order.pop(place))
        queue.reorder(order)


def find_run_by_name(home: Home, name: str) -> RunStatus:
    """The newest run of this name, or the run with this id.

    Raises:
        HomeError: there is none.
    """
    runs = list_runs(home)
    found = next((run for run in runs if name in (run.name, run.id)), None)
    if found is None:
        known = ", ".join(dict.fromkeys(run.name for run in runs[:8]))
        raise HomeError(f"There is no run named {name!r}." + (f" The newest are: {known}." if known else ""))
    return found


def cancel(home: Home, id: str) -> None:
    """Remove a run from the queue, or tell its process to end without an adapter; one that is over is left alone.

    Raises:
        HomeError: there is no such run.
    """
    run, state = find_run(home, id), run_status(home, id)
    if state.is_over:
        return
    with open_queue(home) as queue:
        queue.remove(run)
    events = len(run.events())
    # Sent even where no process is seen: the worker may be starting it at this moment.
    run.send_command("cancel")
    if not run.is_alive() and len(run.events()) == events:   # else its process has ended it already
        run.append(Stopped(state.step, "Cancelled while waiting."))


def find_run(home: Home, id: str) -> RunFolder:
    """Find a run by its id.

    Raises:
        HomeError: there is none.
    """
    # An id may come from a browser: only the name of a visible folder in runs/ is accepted.
    if id not in (path.name for path in run_folders(home)):
        raise HomeError("This run does not exist. It may have been deleted.")
    return RunFolder(home.runs / id)


def run_status(home: Home, id: str) -> RunStatus:
    """The state of one run.

    Raises:
        HomeError: there is no such run.
    """
    return read_status(find_run(home, id), queued_runs(home))


def list_runs(home: Home) -> list[RunStatus]:
    """The states of all runs, newest first."""
    waiting = queued_runs(home)
    return [read_status(RunFolder(path), waiting) for path in reversed(run_folders(home))]


def run_folders(home: Home) -> list[Path]:
    """The folders of all runs, oldest first."""
    return sorted(path.parent for path in home.runs.glob("*/recipe.toml") if not path.parent.name.startswith("."))


def queued_runs(home: Home) -> dict[str, Action]:
    """What waits in the queue by id, the next one first, and what to do with each."""
    if not home.queue and (is_shared(home) or not (home.state / "queue.sqlite").exists()):
        return {}
    try:
        with open_queue(home) as queue:
            return queue.waiting()
    except HomeError:
        if not home.queue:
            raise
        return {}   # while Redis can't be reached only the order is unknown


def read_status(run: RunFolder, waiting: Mapping[str, Action] = MappingProxyType({})) -> RunStatus:
    """Read a run's state from its folder and from the queue; ``waiting`` has the runs in the queue, in order."""
    if run.is_alive():
        result = _folder_status(run.path)
        return replace(result, state="preparing", message="Starting") if result.state == "queued" else result
    result = replace(_cached_status(run.path, *_version(run.path / "events.jsonl")))
    if run.id in waiting and (result.state == "queued" or waiting[run.id] in (Action.RESUME, Action.RECOVER)):
        result.state, result.message = "queued", f"Number {list(waiting).index(run.id) + 1} in the queue."
    return result


def _folder_status(path: Path) -> RunStatus:
    try:
        return status(RunFolder(path))
    except (ValueError, OSError) as error:
        message = f"This run can't be read: {error} Its folder is {path}."
        return RunStatus(path.name, path.name, state="failed", message=message)


@lru_cache(maxsize=256)
def _cached_status(path: Path, _modified: int, _size: int) -> RunStatus:
    """State of a run that no process works on. The time and size of its events are the key of the cache."""
    return _folder_status(path)


def _version(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError:
        return 0, 0
    return facts.st_mtime_ns, facts.st_size


def worker_alive(home: Home) -> bool:
    """Whether a worker is running for this home, on any machine that shares it."""
    if home.queue:
        return _has_shared_worker(home)
    try:
        with worker_lock(home, seconds=0):
            return False
    except Timeout:
        return True


def _has_shared_worker(home: Home) -> bool:
    from atelier.app.jobs.redis_queue import redis_queue  # needs the package redis

    try:
        with redis_queue(home) as queue:
            return queue.has_worker()
    except HomeError:
        return False


def worker_lock(home: Home, seconds: float) -> FileLock:
    """The lock that a worker holds while it runs; taking it raises :class:`filelock.Timeout` after ``seconds``."""
    return FileLock(home.state / "worker.lock", timeout=seconds)


def auto_resume_marker(run: RunFolder) -> Path:
    """File that marks a run which was resumed automatically since a person last resumed it."""
    return run.path / "resumed-by-itself"
