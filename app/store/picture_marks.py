"""What a person marked in the gallery: stars, and boards that pictures are on.

Pictures don't hold this, so it has a file of its own beside them, from which the index is made again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, HomeError, safe_name, write_home_file

_WRITE_LOCK = threading.Lock()   # two tabs may mark at the same time


@dataclass(frozen=True, slots=True)
class PictureMarks:
    """Ids of starred pictures, and of those on each board."""

    stars: frozenset[str] = frozenset()
    boards: dict[str, frozenset[str]] = field(default_factory=dict)


def read_marks(home: Home) -> PictureMarks:
    """Read the marks; none where there is no file, or one that can't be read."""
    try:
        values = parse_json(home.picture_marks.read_text(encoding="utf-8"))
        boards = {str(name): frozenset(map(str, ids)) for name, ids in values["boards"].items()}
        return PictureMarks(frozenset(map(str, values["stars"])), boards)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return PictureMarks()


def set_stars(home: Home, ids: Iterable[str], starred: bool) -> PictureMarks:
    """Star pictures, or take their stars away; returns the new marks.

    Raises:
        HomeError: they can't be written.
    """
    chosen = frozenset(ids)
    return _change(home, lambda marks: replace(marks, stars=marks.stars | chosen if starred else marks.stars - chosen))


def put_on_board(home: Home, name: str, ids: Iterable[str]) -> PictureMarks:
    """Put pictures on a board, which is made if it is not there; returns the new marks.

    Raises:
        HomeError: the name can't be used, or the marks can't be written.
    """
    board, chosen = safe_name(name), frozenset(ids)
    return _change(home, lambda marks: replace(
        marks, boards={**marks.boards, board: marks.boards.get(board, frozenset()) | chosen}))   # fmt: skip


def take_off_board(home: Home, name: str, ids: Iterable[str]) -> PictureMarks:
    """Take pictures off a board; one that is empty afterwards is gone. Returns the new marks.

    Raises:
        HomeError: there is no such board, or the marks can't be written.
    """
    def change(marks: PictureMarks) -> PictureMarks:
        """Without the pictures."""
        if name not in marks.boards:
            raise HomeError(f"There is no board named {name!r}.")
        left = {**marks.boards, name: marks.boards[name] - chosen}
        return replace(marks, boards={board: on for board, on in left.items() if on})

    chosen = frozenset(ids)
    return _change(home, change)


def _change(home: Home, change: Callable[[PictureMarks], PictureMarks]) -> PictureMarks:
    with _WRITE_LOCK:
        marks = change(read_marks(home))
        boards = {name: sorted(ids) for name, ids in sorted(marks.boards.items())}
        text = json.dumps({"stars": sorted(marks.stars), "boards": boards}, ensure_ascii=False, indent=0)
        write_home_file(home.picture_marks, text.encode())
        return marks
