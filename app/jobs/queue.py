"""The queue of a home: the order in which runs are started, kept by huey in SQLite, or in Redis for several machines.

A message says only what to do with which run. The run folders hold the truth, so that a lost queue loses only the
order: the worker finds the waiting runs again by their folders.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from huey import SqliteHuey

from atelier.app.jobs.base_queue import Handler, Queue
from atelier.app.jobs.huey_internals import JsonSerializer, close_database
from atelier.app.jobs.queue_file import queue_path, set_aside_damaged
from atelier.app.store.home import Home, HomeError


def open_queue(home: Home, handle: Handler = lambda _id, _action: None) -> AbstractContextManager[Queue]:
    """Open the queue of a home; ``handle`` carries out its messages, which only the worker needs.

    Raises:
        HomeError: the file can't be read or written, or the Redis server not reached.
    """
    if not home.queue:
        return _sqlite_queue(home, handle)
    try:
        from atelier.app.jobs.redis_queue import redis_queue
    except ImportError:
        raise HomeError("A queue in Redis needs the package redis. Install it: pip install 'atelier-lora[redis]'. Or "
                        "omit --queue, to use this machine alone.") from None
    return redis_queue(home, handle)


@contextmanager
def _sqlite_queue(home: Home, handle: Handler) -> Iterator[Queue]:
    if is_shared(home):
        raise HomeError(f"The jobs of {home.path} wait in Redis, for several machines. Give its address: --queue "
                        f"redis://HOST:6379. To use one machine alone again, delete {home.state / 'shared-queue'}.")
    path = queue_path(home)
    try:
        set_aside_damaged(path)
        huey = SqliteHuey("atelier", filename=str(path), serializer=JsonSerializer(), results=False)
        try:
            yield Queue(huey, handle)
        finally:
            close_database(huey)
    except sqlite3.Error as error:
        raise HomeError(f"The queue {path} can't be used: {error}. If the disk is not full, delete this file. Atelier "
                        "finds waiting runs again when it starts.") from error


def is_shared(home: Home) -> bool:
    """Whether the jobs of a home wait in Redis; a worker that looked elsewhere would start them a second time."""
    return (home.state / "shared-queue").exists()
