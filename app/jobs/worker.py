"""The worker: one process a home that works off the queue, one child process at a time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from filelock import Timeout

from atelier.app.jobs.child_process import Command, run_child, training_command, watch_child
from atelier.app.jobs.jobs import auto_resume_marker, read_status, run_folders, worker_lock
from atelier.app.jobs.queue import Action, Queue, open_queue
from atelier.app.store.home import Home, HomeError
from atelier.training.config.events import Saved
from atelier.training.config.run_folder import RunFolder

_POLL_SECONDS = 1.0


def run_worker(home: Home, command: Command = training_command) -> None:
    """Work off the queue until this process is told to end; a child then goes on, and the next worker finds it.

    Call it in the main thread of a process of its own: it listens to signals.

    Raises:
        HomeError: another worker serves this home, or the queue can't be used.
    """
    try:
        # worker_alive() holds the lock for a moment; a worker holds it for good.
        held = worker_lock(home, seconds=2).acquire()
    except Timeout:
        raise HomeError(f"A worker is already running for {home.path}, and one is enough.") from None

    def handle(id: str, action: Action) -> None:
        _handle(RunFolder(home.runs / id), action, queue, lambda run: run_child(run, home.adapters, command))

    with held, open_queue(home, handle) as queue:
        reconcile(home, queue)
        consumer = queue.huey.create_consumer(workers=1, periodic=False, max_delay=_POLL_SECONDS)
        consumer.start()
        _wait_for_signal()
        consumer.stop()


def _wait_for_signal() -> None:
    # huey's own handlers would wait for the running job, which may take hours.
    told = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: told.set())
    told.wait()


def reconcile(home: Home, queue: Queue) -> None:
    """Bring the queue in line with the run folders, because they know better what was going on.

    Runs that live come first, to be watched; those that nobody knows of any more are put at the end; those that were
    interrupted go on from their checkpoint by themselves, once.
    """
    waiting = queue.waiting()
    for run in map(RunFolder, run_folders(home)):
        state = read_status(run).state
        if run.is_alive():
            queue.add(run, Action.WATCH, soon=True)
        elif run.id not in waiting:
            if state == "queued":
                queue.add(run, Action.START)
            _auto_resume(run, queue)


def _handle(run: RunFolder, action: Action, queue: Queue, train: Callable[[RunFolder], None]) -> None:
    """Do what a message asks for, if it still makes sense."""
    state = read_status(run).state
    if run.is_alive():
        watch_child(run)
        _auto_resume(run, queue)
    elif (action == Action.START and state == "queued") or (action == Action.RESUME and state != "done"):
        train(run)


def _auto_resume(run: RunFolder, queue: Queue) -> None:
    """Resume an interrupted run from its checkpoint, once: a second time is for a person to decide."""
    if read_status(run).state != "interrupted" or auto_resume_marker(run).exists():
        return
    if any(isinstance(event, Saved) for _, event in run.events()):
        auto_resume_marker(run).touch()
        queue.add(run, Action.RESUME, soon=True)
