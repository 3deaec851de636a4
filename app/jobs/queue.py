"""The queue of a home: huey over SQLite keeps the order in which runs are worked on.

A message says only what to do with which run. The run folders keep the truth, so a lost queue loses nothing but the
order: the worker finds the runs that wait by looking at the folders.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from atelier.app.store.home import Home, HomeError
from atelier.training.config.run_folder import RunFolder


class Action(StrEnum):
    """What a message asks for. A run that lives is only ever watched, whatever the message says."""

    START = "start"
    RESUME = "resume"
    WATCH = "watch"


Handler = Callable[[str, Action], None]   # run id, what to do


class _JsonSerializer(Serializer):
    """Messages as JSON: huey's own pickles would let whoever can write the queue run code in the worker."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps(data).encode()

    def _deserialize(self, data: bytes) -> Any:
        values = json.loads(data)
        return Message(*values) if len(values) == len(Message._fields) else values


class Queue:
    """The queue of one home, open."""

    def __init__(self, path: Path, work: Handler) -> None:
        self.huey = SqliteHuey("atelier", filename=str(path), serializer=_JsonSerializer(), results=False)

        def train(run_id: str, act: str) -> None:
            work(run_id, Action(act))

        self._train: Any = self.huey.task()(train)

    def add(self, run: RunFolder, act: Action, *, soon: bool = False) -> None:
        """Put a message at the end, or ``soon``: before those that were put at the end."""
        self.huey.enqueue(self._train.s(run.id, act, priority=int(soon)))

    def waiting(self) -> dict[str, Action]:
        """What is to be done with the runs that wait, by their ids, the next one first."""
        return {task.args[0]: Action(task.args[1]) for task in self.huey.pending() if not self.huey.is_revoked(task)}

    def drop(self, run: RunFolder) -> None:
        """Take back every message about a run."""
        for task in self.huey.pending():
            if task.args[0] == run.id:
                self.huey.revoke(task, revoke_once=True)


@contextmanager
def open_queue(home: Home, work: Handler = lambda _id, _act: None) -> Iterator[Queue]:
    """Open the queue of a home; ``work`` does what its messages ask for, in the worker alone.

    Raises:
        HomeError: the file can't be read or written.
    """
    path = home.state / "queue.sqlite"
    try:
        queue = Queue(path, work)
        try:
            yield queue
        finally:
            queue.huey.storage.close()
    except sqlite3.Error as error:
        raise HomeError(f"The queue {path} can't be used: {error}. If the disk is not full, delete this file. Atelier "
                        "finds waiting runs again when it starts.") from error
