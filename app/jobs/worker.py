"""The worker: the process of a home that carries out the queue, one child process at a time for each graphics card."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from filelock import Timeout

from atelier.adapters.core.repeat import repeated
from atelier.app.jobs.base_queue import Action, Queue
from atelier.app.jobs.child_process import Command, run_child, training_command, watch_child
from atelier.app.jobs.gpu_pool import GpuPool, find_gpus
from atelier.app.jobs.grid_folders import grid_folders, is_grid, queued_folder
from atelier.app.jobs.grid_jobs import grid_command, read_grid_job
from atelier.app.jobs.jobs import auto_resume_marker, read_status, run_folders, worker_lock
from atelier.app.jobs.queue import open_queue
from atelier.app.jobs.queue_file import file_identity, queue_path
from atelier.app.jobs.worker_process import record_worker
from atelier.app.store.home import Home, HomeError
from atelier.training.config.events import Saved
from atelier.training.config.run_folder import RunFolder

_POLL_SECONDS = 1.0
LOOK_SECONDS = 10.0   # between looks for runs that wait and that no message names


def run_worker(home: Home, command: Command = training_command) -> None:
    """Carry out the queue until a signal ends this process; a child then continues, and the next worker watches it.

    Call it in the main thread of a process of its own, because it handles signals.

    Raises:
        HomeError: another worker is running for this home, which no other machine shares; or the queue can't be used.
    """
    names = find_gpus()
    cards = GpuPool(names)

    def train(run: RunFolder, lost: threading.Event | None = None) -> None:
        """Train a run in a child process on a free card."""
        with cards.card() as environment:
            run_child(run, home.adapters, grid_command if is_grid(run) else command, environment, lost)

    def opened() -> AbstractContextManager[Queue]:
        """The queue, in line with the folders."""
        if not home.queue:
            return _open_alone(home, train)
        from atelier.app.jobs.shared_worker import open_shared  # needs the package redis

        return open_shared(home, train, has_card=bool(names))

    ended = threading.Event()
    while not ended.is_set():
        with opened() as queue:
            file = file_identity(queue_path(home))
            consumer = queue.huey.create_consumer(workers=cards.size, periodic=False, max_delay=_POLL_SECONDS)
            consumer.start()
            _catch_signals(ended)
            # Somebody may delete the queue's file, or set it aside because it is damaged: then all begins anew.
            while not ended.wait(_POLL_SECONDS) and file_identity(queue_path(home)) == file:
                pass
            consumer.stop()


@contextmanager
def _open_alone(home: Home, train: Callable[[RunFolder], None]) -> Iterator[Queue]:
    """The queue of a home that has no other worker, in line with its folders."""
    try:
        # worker_alive() holds the lock for a moment, a worker as long as it runs.
        lock = worker_lock(home, seconds=2).acquire()
    except Timeout:
        raise HomeError(f"A worker is already running for {home.path}, and one is enough.") from None

    def handle(id: str, action: Action) -> None:
        """Do what a message of the queue asks for."""
        _handle(queued_folder(home, id), action, queue, train)

    with lock, open_queue(home, handle) as queue:
        record_worker(home)
        reconcile(home, queue)
        with repeated(ForgottenRuns(home).look, LOOK_SECONDS):
            yield queue


def _catch_signals(ended: threading.Event) -> None:
    # huey's own handlers would wait for the running job, which may take hours.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: ended.set())


def reconcile(home: Home, queue: Queue) -> None:
    """Make the queue agree with the run folders, which hold the truth.

    Runs with a process come first, to be watched; runs that wait but are not in the queue are put at its end; runs
    that were interrupted continue from their checkpoint, automatically only once.
    """
    waiting = queue.waiting()
    for run in [*map(RunFolder, run_folders(home)), *grid_folders(home)]:
        state = _state(run)
        if run.is_alive():
            queue.add(run, Action.WATCH, soon=True)
        elif run.id not in waiting:
            if state == "queued":
                queue.add(run, Action.START)
            _auto_resume(run, queue)


class ForgottenRuns:
    """Runs that wait and that no message names: whoever submitted or moved them was killed, or the disk was full."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._found: set[str] = set()   # by the last look: a message may be on its way, or just taken

    def look(self) -> None:
        """Put into the queue what was found the last time as well."""
        try:
            with open_queue(self._home) as queue:
                waiting = queue.waiting()
                runs = [run for run in [*map(RunFolder, run_folders(self._home)), *grid_folders(self._home)]
                        if run.id not in waiting and _state(run) == "queued"]   # fmt: skip
                for run in runs:
                    if run.id in self._found:
                        queue.add(run, Action.START)
            self._found = {run.id for run in runs} - self._found
        except (HomeError, OSError) as error:
            logging.getLogger(__name__).warning("The runs can't be looked after, trying again: %s", error)


def _handle(run: RunFolder, action: Action, queue: Queue, train: Callable[[RunFolder], None]) -> None:
    """Carry out a message, unless the run's state has changed since it was written."""
    state = _state(run)
    if run.is_alive():
        watch_child(run)
        _auto_resume(run, queue)
    elif (action == Action.START and state == "queued") or (action == Action.RESUME and state != "done"):
        train(run)


def _state(run: RunFolder) -> str:
    return read_grid_job(run).state if is_grid(run) else read_status(run).state


def _auto_resume(run: RunFolder, queue: Queue) -> None:
    """Resume an interrupted run from its checkpoint, once: the second time, a person decides."""
    if _state(run) != "interrupted" or auto_resume_marker(run).exists():
        return
    if is_grid(run) or any(isinstance(event, Saved) for _, event in run.events()):
        auto_resume_marker(run).touch()
        queue.add(run, Action.RESUME, soon=True)
