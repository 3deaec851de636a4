"""The worker of one machine among several that share a home: what it does beside carrying out messages.

Nobody may start what another machine works on, and what a lost machine leaves behind has to go on elsewhere, once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from atelier.adapters.core.repeat import repeated
from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.child_process import STALE_SECONDS
from atelier.app.jobs.grid_folders import grid_folders, is_grid, queued_folder
from atelier.app.jobs.grid_jobs import read_grid_job
from atelier.app.jobs.jobs import auto_resume_marker, read_status, run_folders
from atelier.app.jobs.redis_queue import RedisQueue, redis_queue
from atelier.app.store.home import Home
from atelier.training.config.events import Failed, Finished, Interrupted, Stopped
from atelier.training.config.run_folder import RunFolder

LOST = "The machine that worked on it was lost. It continues on another one."
_LOOK_SECONDS = 5.0

Train = Callable[[RunFolder, threading.Event], None]   # run, what says that its lease was lost


@contextmanager
def open_shared(home: Home, train: Train, *, has_card: bool) -> Iterator[RedisQueue]:
    """The queue of a home that other machines share; while the context is open, its runs are looked after.

    Raises:
        HomeError: nothing answers at the address of the queue.
    """
    def handle(id: str, action: Action) -> None:
        """Do what a message of the queue asks for."""
        carry_out(queued_folder(home, id), action, queue, train)

    heartbeats = Heartbeats()

    def look() -> None:
        """Look after the runs of all machines; while Redis can't be reached, it is tried again."""
        try:
            find_lost_runs(home, queue, heartbeats)
        except (RedisError, OSError) as error:
            logging.getLogger(__name__).warning("The runs can't be looked after, trying again: %s", error)

    with redis_queue(home, handle) as queue, queue.worker(has_card):
        look()
        with repeated(look, _LOOK_SECONDS):
            yield queue


class Heartbeats:
    """Which runs have a process, as seen from here: the clocks of machines differ, so only a change counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, float]] = {}   # run id → time of its heartbeat, when it was seen first

    def has_stopped(self, run: RunFolder) -> bool:
        """Whether there is no heartbeat, or it has not moved for as long as a process may take."""
        try:
            beat = (run.path / "heartbeat").stat().st_mtime
        except FileNotFoundError:
            return True
        if self._last.get(run.id, (None, 0.0))[0] != beat:
            self._last[run.id] = beat, self._clock()
        return self._clock() - self._last[run.id][1] > STALE_SECONDS


def find_lost_runs(home: Home, queue: RedisQueue, heartbeats: Heartbeats) -> None:
    """Put into the queue what waits and is not in it, and what a lost machine worked on, from its checkpoint.

    Several workers may do so at once. A message too many does nothing: see :func:`carry_out`.
    """
    waiting = queue.waiting()
    for run in [*map(RunFolder, run_folders(home)), *grid_folders(home)]:
        if run.id in waiting or queue.is_leased(run) or not heartbeats.has_stopped(run):
            continue
        if not run.events():
            queue.add(run, Action.START)
        elif may_recover(run):
            queue.add(run, Action.RECOVER, soon=True)


def may_recover(run: RunFolder) -> bool:
    """Whether a run did not end by itself, and has not been recovered since a person last resumed it."""
    events = run.events()
    ended = bool(events) and isinstance(events[-1][1], Finished | Failed | Stopped)
    return bool(events) and not ended and not auto_resume_marker(run).exists()


def carry_out(run: RunFolder, action: Action, queue: RedisQueue, train: Train) -> None:
    """Carry out a message if nobody works on the run, and its state still asks for it."""
    with queue.lease(run) as lost:
        if lost is None or run.is_alive():
            return
        state = read_grid_job(run).state if is_grid(run) else read_status(run).state
        if action == Action.RECOVER and may_recover(run):
            auto_resume_marker(run).touch()   # the second time, a person decides
            if not isinstance(run.events()[-1][1], Interrupted):
                run.append(Interrupted(LOST))
            train(run, lost)
        elif (action == Action.START and state == "queued") or (action == Action.RESUME and state != "done"):
            train(run, lost)
