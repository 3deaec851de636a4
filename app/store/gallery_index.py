"""An index of the gallery in SQLite, for search and long lists. It is made from the pictures and can be deleted.

Only names are compared with the folder, and only when it has changed; a picture's file is read once.
"""

from __future__ import annotations

import heapq
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from atelier.app.store.gallery import find_picture, read_recipe
from atelier.app.store.home import Home, HomeError
from atelier.app.store.picture_marks import read_marks
from atelier.training.measures.picture_features import (
    COLOURS,
    FEATURE_BYTES,
    colours_of,
    feature_distances,
    picture_feature,
)

VERSION = 3
INDEX_FILE = "gallery.sqlite"
_WORK_SECONDS, _REST_SECONDS = 0.2, 0.4   # of the thread that describes pictures
_DESCRIBING = threading.Lock()
_FEATURES = 5000    # looked at together
_SHOWN = "id, prompt, seed, starred, damaged"
_BATCH = 200        # pictures that are written at once
_RECENT = 500       # pictures whose prompts and adapters count as recent
_TABLES = """
CREATE TABLE pictures (id TEXT PRIMARY KEY, prompt TEXT NOT NULL, seed INTEGER, words TEXT NOT NULL, damaged INTEGER NOT
 NULL, starred INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE adapters (name TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE TABLE boards (name TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE TABLE looks (id TEXT PRIMARY KEY, feature BLOB NOT NULL, colours INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE seen (what TEXT PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE unread (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE undescribed (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX starred ON pictures (id) WHERE starred;
CREATE INDEX adapters_of_pictures ON adapters (id);
"""
_ALL_TABLES = ("pictures", "adapters", "boards", "looks", "seen", "unread", "undescribed")
_OF_PICTURES = ("pictures", "adapters", "looks", "unread", "undescribed")   # what is forgotten with a picture
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureQuery:
    """Which pictures are asked for; what is empty does not matter."""

    text: str = ""         # words that are all in the prompt or in the names of the adapters
    adapter: str = ""      # drawn with it
    board: str = ""
    starred: bool = False
    since: str = ""        # the first day, as 2026-11-30
    until: str = ""        # the last day
    colour: str = ""       # that covers a part of it, one of ``COLOURS``
    similar: str = ""      # id of a picture that looks alike: the nearest first, and no more than one page


@dataclass(frozen=True, slots=True)
class IndexedPicture:
    """What a list shows of a picture."""

    id: str
    prompt: str
    seed: int | None
    starred: bool
    damaged: bool


def update_index(home: Home, seconds: float = 1.0) -> int:
    """Bring the index up to date, the newest pictures first; returns how many are left when the time is over.

    Raises:
        HomeError: the index can't be written.
    """
    return _with_index(home, lambda db: _update(home, db, time.monotonic() + seconds))


def search_pictures(home: Home, query: PictureQuery, before: str = "", limit: int = 60) -> list[IndexedPicture]:
    """One page of the pictures that fit, newest first: those older than the id ``before``.

    Raises:
        HomeError: the index can't be read.
    """
    if query.similar:
        return [] if before else _with_index(home, lambda db: _similar(db, query, limit))
    where, values = _conditions(query, before)
    sql = f"SELECT {_SHOWN} FROM pictures WHERE {where} ORDER BY id DESC LIMIT ?"
    return _with_index(home, lambda db: [_indexed(row) for row in db.execute(sql, [*values, limit])])


def _indexed(row: tuple[Any, ...]) -> IndexedPicture:
    id, prompt, seed, starred, damaged = row
    return IndexedPicture(id, prompt, seed, bool(starred), bool(damaged))


def _similar(db: sqlite3.Connection, query: PictureQuery, limit: int) -> list[IndexedPicture]:
    """The pictures nearest to ``query.similar``, itself first; features are read some thousands at a time."""
    one = db.execute("SELECT feature FROM looks WHERE id = ?", (query.similar,)).fetchone()
    if not one:
        return []
    nearest: list[tuple[float, str]] = []
    where, values = _conditions(query, "")
    rows = db.execute(f"SELECT id, feature FROM looks WHERE id IN (SELECT id FROM pictures WHERE {where})", values)
    while part := rows.fetchmany(_FEATURES):
        distances = feature_distances(one[0], [feature for _, feature in part])
        nearest = heapq.nsmallest(limit, [*nearest, *zip(distances.tolist(), (id for id, _ in part), strict=True)])
    find = f"SELECT {_SHOWN} FROM pictures WHERE id = ?"
    return [_indexed(db.execute(find, (id,)).fetchone()) for _, id in nearest]


def describe_pictures(home: Home, seconds: float = 1.0) -> int:
    """Note what pictures look like, the newest first; returns how many are left when the time is over.

    Raises:
        HomeError: the index can't be written.
    """
    return _with_index(home, lambda db: _describe(home, db, time.monotonic() + seconds))


def describe_in_background(home: Home) -> None:
    """Describe all pictures in a thread that leaves the processor to the pages most of the time; one runs at once."""
    if _DESCRIBING.acquire(blocking=False):
        threading.Thread(target=_describe_all, args=(home,), daemon=True).start()


def _describe_all(home: Home) -> None:
    try:
        while describe_pictures(home, _WORK_SECONDS):
            time.sleep(_REST_SECONDS)
    except (HomeError, OSError, sqlite3.Error):
        pass   # a full disk, or a home that has gone: the next visit of the gallery tries again
    finally:
        _DESCRIBING.release()


def _describe(home: Home, db: sqlite3.Connection, end: float) -> int:
    while ids := _newest(db, "undescribed"):
        found: list[tuple[str, bytes, int]] = []
        for id in ids:
            found.append((id, *_look(home.gallery / f"{id}.png")))
            if time.monotonic() > end:
                break
        with db:
            db.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", found)
            db.executemany("DELETE FROM undescribed WHERE id = ?", [(id,) for id, _, _ in found])
        if time.monotonic() > end:
            break
    return _left(db, "undescribed")


def _newest(db: sqlite3.Connection, table: str) -> list[str]:
    """A batch of the pictures that still wait in a table."""
    return [row[0] for row in db.execute(f"SELECT id FROM {table} ORDER BY id DESC LIMIT {_BATCH}")]


def _left(db: sqlite3.Connection, table: str) -> int:
    return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def _look(path: Path) -> tuple[bytes, int]:
    """A picture's feature, and its colours as bits; of one that can't be read, those of nothing."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return picture_feature(image), sum(1 << COLOURS.index(name) for name in colours_of(image))
    except (OSError, ValueError, SyntaxError):
        return bytes(FEATURE_BYTES), 0


def count_pictures(home: Home, query: PictureQuery) -> int:
    """How many pictures fit.

    Raises:
        HomeError: the index can't be read.
    """
    if query.similar:
        return len(search_pictures(home, query))
    where, values = _conditions(query, "")
    sql = f"SELECT count(*) FROM pictures WHERE {where}"
    return _with_index(home, lambda db: db.execute(sql, values).fetchone()[0])


def adapters_in_gallery(home: Home) -> list[str]:
    """The names of all adapters that pictures were drawn with."""
    return _column(home, "SELECT DISTINCT name FROM adapters ORDER BY name COLLATE NOCASE")


def recent_prompts(home: Home, limit: int = 30) -> list[str]:
    """The prompts of the newest pictures, each once, newest first."""
    newest = f"SELECT prompt, id FROM pictures WHERE prompt != '' ORDER BY id DESC LIMIT {_RECENT}"
    return _column(home, f"SELECT prompt FROM ({newest}) GROUP BY prompt ORDER BY max(id) DESC LIMIT ?", limit)


def recent_adapters(home: Home, limit: int = 12) -> list[str]:
    """The adapters that were drawn with last, each once, the last one first."""
    return _column(home, "SELECT name FROM adapters WHERE id IN (SELECT id FROM pictures ORDER BY id DESC LIMIT "
                         f"{_RECENT}) GROUP BY name ORDER BY max(id) DESC LIMIT ?", limit)   # fmt: skip


def _column(home: Home, sql: str, *values: Any) -> list[str]:
    return _with_index(home, lambda db: [row[0] for row in db.execute(sql, values)])


def _conditions(query: PictureQuery, before: str) -> tuple[str, list[Any]]:
    """What a row must fulfil in SQL, and the values in it."""
    parts: list[tuple[str, Any]] = [("instr(words, ?)", word) for word in query.text.casefold().split()]
    given = {
        "id < ?": before, "id IN (SELECT id FROM adapters WHERE name = ?)": query.adapter,
        "id IN (SELECT id FROM boards WHERE name = ?)": query.board, "id >= ?": query.since.replace("-", ""),
        # Ids begin with the day; this sign is above all that can follow.
        "id <= ?": query.until.replace("-", "") + "~" if query.until else "",
        "id IN (SELECT id FROM looks WHERE colours & ?)":
            1 << COLOURS.index(query.colour) if query.colour in COLOURS else 0,
    }   # fmt: skip
    parts += [(condition, value) for condition, value in given.items() if value]
    every = ["1", *(condition for condition, _ in parts), *(["starred"] if query.starred else [])]
    return " AND ".join(every), [value for _, value in parts]


def _update(home: Home, db: sqlite3.Connection, end: float) -> int:
    state = str(home.gallery.stat().st_mtime_ns)
    marks = _modified(home)
    if _seen(db, "gallery") != state:
        _compare_names(home, db)
        _see(db, "gallery", state)
    left = _read_new(home, db, end)
    if not left and _seen(db, "marks") != marks:
        _take_marks(home, db)
        _see(db, "marks", marks)
    return left


def _compare_names(home: Home, db: sqlite3.Connection) -> None:
    """Forget pictures that are gone, and note which are new."""
    with os.scandir(home.gallery) as entries:
        there = {entry.name[:-4] for entry in entries if entry.name.endswith(".png")}
    known, unread = ({row[0] for row in db.execute(f"SELECT id FROM {table}")} for table in ("pictures", "unread"))
    with db:
        for table in _OF_PICTURES:
            db.executemany(f"DELETE FROM {table} WHERE id = ?", [(id,) for id in (known | unread) - there])
        db.executemany("INSERT OR IGNORE INTO unread VALUES (?)", [(id,) for id in sorted(there - known)])


def _read_new(home: Home, db: sqlite3.Connection, end: float) -> int:
    """Read new pictures until the time is over; returns how many are left."""
    stars = read_marks(home).stars
    while ids := _newest(db, "unread"):
        with db:
            for id in ids:
                _add(home, db, id, id in stars)
            db.executemany("DELETE FROM unread WHERE id = ?", [(id,) for id in ids])
        if time.monotonic() > end:
            break
    return _left(db, "unread")


def _add(home: Home, db: sqlite3.Connection, id: str, starred: bool) -> None:
    try:
        picture = find_picture(home, id, with_damaged=True)
    except HomeError:   # another file that lies there
        return
    recipe = read_recipe(picture.path) or {}
    names = recipe_adapters(recipe)
    prompt, seed = str(recipe.get("prompt", "")), recipe.get("seed")
    db.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?)", (
        id, prompt, seed if isinstance(seed, int) and abs(seed) < 2**63 else None,
        " ".join([prompt, *names]).casefold(), picture.damaged, starred))   # fmt: skip
    db.executemany("INSERT OR REPLACE INTO adapters VALUES (?, ?)", [(name, id) for name in names])
    if not picture.damaged:
        db.execute("INSERT OR IGNORE INTO undescribed VALUES (?)", (id,))


def recipe_adapters(recipe: dict[str, Any]) -> list[str]:
    """The names of the adapters in a recipe, which may be anything."""
    parts = recipe.get("adapters")
    return [str(part["name"]) for part in parts if isinstance(part, dict) and "name" in part] if isinstance(
        parts, list) else []   # fmt: skip


def _take_marks(home: Home, db: sqlite3.Connection) -> None:
    marks = read_marks(home)
    on_boards = [(name, id) for name, ids in marks.boards.items() for id in ids]
    with db:
        db.execute("UPDATE pictures SET starred = 0 WHERE starred")
        db.executemany("UPDATE pictures SET starred = 1 WHERE id = ?", [(id,) for id in marks.stars])
        db.execute("DELETE FROM boards")
        db.executemany("INSERT INTO boards VALUES (?, ?)", on_boards)


def _modified(home: Home) -> str:
    try:
        return str(home.picture_marks.stat().st_mtime_ns)
    except OSError:
        return ""


def _seen(db: sqlite3.Connection, what: str) -> str:
    row = db.execute("SELECT state FROM seen WHERE what = ?", (what,)).fetchone()
    return row[0] if row else ""


def _see(db: sqlite3.Connection, what: str, state: str) -> None:
    with db:
        db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (what, state))


def _with_index(home: Home, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do something with the index; one that is damaged or of another version is made again."""
    try:
        with _open(home) as db:
            return work(db)
    except sqlite3.OperationalError as error:
        raise HomeError(f"The index of the gallery can't be used ({error}). If the disk is not full, delete "
                        f"{home.state / INDEX_FILE}; it is made again.") from error   # fmt: skip
    except sqlite3.DatabaseError:
        (home.state / INDEX_FILE).unlink(missing_ok=True)
        with _open(home) as db:
            return work(db)


@contextmanager
def _open(home: Home) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(home.state / INDEX_FILE, timeout=30)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            for table in _ALL_TABLES:
                db.execute(f"DROP TABLE IF EXISTS {table}")
            db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        yield db
