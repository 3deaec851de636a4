"""The queue of a home: the order in which runs are started, kept by huey in SQLite.

A message says only what to do with which run. The run folders hold the truth, so that a lost queue loses only the
order: the worker finds the waiting runs again by their folders.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from huey import SqliteHuey

from atelier.app.jobs.huey_internals import JsonSerializer, close_database
from atelier.app.store.home import Home, HomeError
from atelier.training.config.run_folder import RunFolder


class Action(StrEnum):
    """What to do with a run. A run that has a process already is only watched, whatever the message says."""

    START = "start"
    RESUME = "resume"
    WATCH = "watch"


Handler = Callable[[str, Action], None]   # run id, what to do


class Queue:
    """The open queue of a home."""

    def __init__(self, path: Path, handle: Handler) -> None:
        self.huey = SqliteHuey("atelier", filename=str(path), serializer=JsonSerializer(), results=False)

        def train(run_id: str, action: str) -> None:
            handle(run_id, Action(action))

        self._train: Any = self.huey.task()(train)

    def add(self, run: RunFolder, action: Action, *, soon: bool = False) -> None:
        """Add a message at the end, or with ``soon`` before those that were added at the end."""
        self.huey.enqueue(self._train.s(run.id, action, priority=int(soon)))

    def waiting(self) -> dict[str, Action]:
        """The waiting runs by id, the next one first, and what to do with each."""
        return {task.args[0]: Action(task.args[1]) for task in self.huey.pending() if not self.huey.is_revoked(task)}

    def reorder(self, run_ids: Sequence[str]) -> None:
        """Put the waiting runs into this order; a run that the worker takes meanwhile is not started twice."""
        actions = self.waiting()
        for task in self.huey.pending():
            self.huey.revoke(task, revoke_once=True)
        for id in run_ids:
            if id in actions:
                self.huey.enqueue(self._train.s(id, actions[id]))

    def remove(self, run: RunFolder) -> None:
        """Remove every message about a run."""
        for task in self.huey.pending():
            if task.args[0] == run.id:
                self.huey.revoke(task, revoke_once=True)


@contextmanager
def open_queue(home: Home, handle: Handler = lambda _id, _action: None) -> Iterator[Queue]:
    """Open the queue of a home; ``handle`` carries out its messages, which only the worker needs.

    Raises:
        HomeError: the file can't be read or written.
    """
    path = home.state / "queue.sqlite"
    try:
        queue = Queue(path, handle)
        try:
            yield queue
        finally:
            close_database(queue.huey)
    except sqlite3.Error as error:
        raise HomeError(f"The queue {path} can't be used: {error}. If the disk is not full, delete this file. Atelier "
                        "finds waiting runs again when it starts.") from error
