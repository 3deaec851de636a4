"""What was read from the files of a folder, each file read once: in memory, and in SQLite for the next process.

With ten thousand files, even asking for each one's time takes longer than a page may. So a look at the folder asks only
for names, which change when a file is added, deleted or replaced, and for the times of a few files, in turn: one that
was written over in place is noticed within some looks, or when it is asked for by its name. The database is an index:
it may be deleted, and is made again when it is damaged or of another version.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
_CHECKED = 200                  # files whose time and size are compared at one look
_SETTLED = 1_000_000_000        # nanoseconds after which a folder's time tells of every change in it
_TABLE = "CREATE TABLE files (name BLOB PRIMARY KEY, modified INTEGER, size INTEGER, content TEXT) WITHOUT ROWID"


class FileState(NamedTuple):
    """A file's path, time and size: what was read from it counts for as long as the last two are the same."""

    path: Path
    modified: int   # nanoseconds since 1970
    size: int       # bytes


@dataclass(frozen=True, slots=True)
class FileReader(Generic[T]):
    """How a file is read, and how the result is stored as text."""

    version: int                            # another one makes the database anew
    accepts: Callable[[str], bool]          # whether a file of this name is read
    read: Callable[[FileState], T]
    store: Callable[[T], str]
    load: Callable[[FileState, str], T]     # raises ValueError, TypeError or KeyError where the text is damaged


class _Entry(NamedTuple, Generic[T]):
    inode: int      # 0: not looked at since it was loaded
    modified: int
    size: int
    value: T


class FolderIndex(Generic[T]):
    """The values of a folder's files. Threads may share it; processes share the database."""

    def __init__(self, folder: Path, database: Path, reader: FileReader[T]) -> None:
        self.folder, self.database, self.reader = folder, database, reader
        self._entries: dict[str, _Entry[T]] = {}
        self._is_loaded = False
        self._folder_time, self._next = 0, 0
        self._changes = 0
        self._lock = threading.RLock()

    def update(self) -> int:
        """Look for changes; returns a number that is another one after each change of a value.

        Raises:
            OSError: the folder can't be read.
        """
        with self._lock:
            self._load()
            names = self._names_to_check()
            changed = [name for name in names if self._check(name)]
            self._write([name for name in changed if name in self._entries], changed)
            self._changes += bool(changed)
            return self._changes

    def read_some(self, most: int) -> tuple[int, int]:
        """Read some of the files that were never read; returns how many are read now, and of how many.

        Raises:
            OSError: the folder can't be read.
        """
        with self._lock:
            self._load()
            with os.scandir(self.folder) as files:
                names = {file.name for file in files if self.reader.accepts(file.name)}
            unread = sorted(names - self._entries.keys())
            changed = [name for name in unread[:most] if self._check(name)]
            self._write([name for name in changed if name in self._entries], changed)
            self._changes += bool(changed)
            return len(names) - len(unread[most:]), len(names)

    def values(self) -> list[T]:
        """All values, by the names of their files."""
        with self._lock:
            return [self._entries[name].value for name in sorted(self._entries)]

    def value(self, name: str) -> T | None:
        """The value of one file as it is now; None where there is none."""
        with self._lock:
            if name not in self._entries and not self._is_loaded:
                self._entries |= self._stored(name)
            if self._check(name):
                self._write([name] if name in self._entries else [], [name])
                self._changes += 1
            entry = self._entries.get(name)
            return entry.value if entry else None

    def _names_to_check(self) -> list[str]:
        """Files that are new, replaced or gone, and the next few of the others."""
        changed, modified = set[str](), self.folder.stat().st_mtime_ns
        if modified != self._folder_time:
            self._folder_time = modified if time.time_ns() - modified > _SETTLED else 0
            with os.scandir(self.folder) as files:
                inodes = {file.name: file.inode() for file in files if self.reader.accepts(file.name)}
            changed = {name for name, inode in inodes.items()
                       if name not in self._entries or self._entries[name].inode != inode}   # fmt: skip
            changed |= self._entries.keys() - inodes.keys()
        names = list(self._entries)
        first = self._next if self._next < len(names) else 0
        self._next = first + _CHECKED
        return sorted(changed.union(names[first : self._next]))

    def _check(self, name: str) -> bool:
        """Read a file if it is another one than before; returns whether it is."""
        path, known = self.folder / name, self._entries.get(name)
        try:
            facts = path.stat()
        except FileNotFoundError:
            return self._entries.pop(name, None) is not None
        state = FileState(path, facts.st_mtime_ns, facts.st_size)
        same = known is not None and (known.modified, known.size) == (state.modified, state.size)
        value = known.value if known and same else self.reader.read(state)
        self._entries[name] = _Entry(facts.st_ino, state.modified, state.size, value)
        return not same

    def _load(self) -> None:
        if not self._is_loaded:
            self._entries = {**self._stored(), **self._entries}
            self._is_loaded = True

    def _stored(self, name: str = "") -> dict[str, _Entry[T]]:
        """The entries in the database, or the one of a file."""
        where, values = ("WHERE name = ?", [os.fsencode(name)]) if name else ("", [])
        found: dict[str, _Entry[T]] = {}
        with suppress(sqlite3.Error), self._open() as db:
            for raw, modified, size, content in db.execute(f"SELECT * FROM files {where}", values):
                with suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
                    file = os.fsdecode(raw)
                    state = FileState(self.folder / file, int(modified), int(size))
                    found[file] = _Entry(0, state.modified, state.size, self.reader.load(state, content))
        return found

    def _write(self, names: Sequence[str], changed: Sequence[str]) -> None:
        """Store entries, and forget those of ``changed`` that are gone; a full disk must not keep anybody from them."""
        if not changed:
            return
        rows = [(os.fsencode(name), entry.modified, entry.size, self.reader.store(entry.value))
                for name, entry in ((name, self._entries[name]) for name in names)]   # fmt: skip
        gone = [(os.fsencode(name),) for name in changed if name not in self._entries]
        with suppress(sqlite3.Error), self._open() as db, db:
            db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM files WHERE name = ?", gone)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as db:
            yield db

    def _connect(self) -> sqlite3.Connection:
        """Open the database; one that is damaged or of another version is made again."""
        for _ in range(2):
            db = sqlite3.connect(self.database, timeout=30)
            try:
                if db.execute("PRAGMA user_version").fetchone()[0] != self.reader.version:
                    db.executescript(f"BEGIN IMMEDIATE; DROP TABLE IF EXISTS files; {_TABLE}; "
                                     f"PRAGMA user_version = {self.reader.version}; COMMIT;")   # fmt: skip
                return db
            except sqlite3.OperationalError:
                db.close()
                raise
            except sqlite3.DatabaseError:
                db.close()
                self.database.unlink(missing_ok=True)
        raise sqlite3.OperationalError(f"{self.database} can't be used")
