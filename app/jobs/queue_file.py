"""The queue's database as a file: one that is damaged is set aside, and the worker notices another one in its place.

What waits is not lost with it: the worker puts the waiting runs, which it knows by their folders, into the new one.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from filelock import FileLock
from huey.registry import Message

from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.huey_internals import JsonSerializer
from atelier.app.store.home import Home

# No database, a broken one, or tables of another program; not: locked, no space, no permission.
_DAMAGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)
_SECONDS = 5.0   # to wait for another process that writes
_log = logging.getLogger(__name__)


def queue_path(home: Home) -> Path:
    """Where the queue of a home is."""
    return home.state / "queue.sqlite"


def file_identity(path: Path) -> tuple[int, int] | None:
    """The same for a path as long as the same file is there; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def set_aside_damaged(path: Path) -> bool:
    """Rename a queue that can't be read, so that a new one is made; returns whether it was damaged."""
    if not path.exists() or is_sound(path):
        return False
    with FileLock(path.with_name("queue.lock"), timeout=_SECONDS):
        if is_sound(path):   # another process was faster
            return True
        with suppress(FileNotFoundError):
            path.replace(path.with_name("queue.damaged.sqlite"))
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
    _log.warning("The queue %s was damaged and was set aside. The worker finds the waiting runs again.", path)
    return True


def is_sound(path: Path) -> bool:
    """Whether every message of a queue can be read; a file that is just being made is sound."""
    try:
        with closing(sqlite3.connect(path, timeout=_SECONDS)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            rows = database.execute("SELECT data, priority FROM task").fetchall() if "task" in tables else []
        return all(_is_message(data) for data, _ in rows)
    except sqlite3.Error as error:
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) not in _DAMAGE


def _is_message(data: bytes) -> bool:
    try:
        message = JsonSerializer().deserialize(data)
        return isinstance(message, Message) and isinstance(message.args[0], str) and message.args[1] in list(Action)
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
