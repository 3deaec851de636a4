"""What a person noted on adapters of the library: a star, tags, and the range of strength that suits one.

Apart from the adapters' own files, which stay as they are: their hashes are how other tools and pictures know them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, write_home_file

MAX_TAGS, MAX_TAG = 20, 40        # of an adapter; characters of a tag
LOWEST, HIGHEST = -4.0, 4.0       # strengths
USUAL_RANGE = (-1.0, 2.0)
_WRITE_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class AdapterNotes:
    """What a person noted on one adapter."""

    star: bool = False
    tags: tuple[str, ...] = ()
    low: float = USUAL_RANGE[0]    # of its slider
    high: float = USUAL_RANGE[1]
    cover: str = ""                # id of a picture of the gallery, in place of the adapter's own preview


def read_notes(home: Home) -> dict[str, AdapterNotes]:
    """The notes by adapter; those without any are not in it. A damaged file counts as empty."""
    with suppress(OSError, ValueError, AttributeError):
        values = parse_json(_file(home).read_text(encoding="utf-8"))
        return {str(name): _notes(each) for name, each in values.items() if isinstance(each, dict)}
    return {}


def save_notes(home: Home, name: str, **values: Any) -> AdapterNotes:
    """Change the notes on an adapter; returns them.

    Raises:
        HomeError: the home can't be written.
    """
    with _WRITE_LOCK:
        notes = read_notes(home)
        notes[name] = _notes(asdict(replace(notes.get(name, AdapterNotes()), **values)))
        kept = {key: asdict(each) for key, each in notes.items() if each != AdapterNotes()}
        write_home_file(_file(home), json.dumps(kept, indent=1, ensure_ascii=False).encode())
        return notes[name]


def split_tags(text: str) -> tuple[str, ...]:
    """Tags from a line with commas, each once.

    >>> split_tags(" dog, blue ,Dog,")
    ('dog', 'blue')
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        tag = " ".join(part.split())[:MAX_TAG]
        found.setdefault(tag.casefold(), tag)
    return tuple(tag for tag in found.values() if tag)[:MAX_TAGS]


def _notes(values: Mapping[str, Any]) -> AdapterNotes:
    """Notes from plain values; what is of another type or out of range counts as not given."""
    low, high = (float(values[key]) if isinstance(values.get(key), int | float) else usual
                 for key, usual in zip(("low", "high"), USUAL_RANGE, strict=True))   # fmt: skip
    low, high = (low, high) if LOWEST <= low < high <= HIGHEST else USUAL_RANGE
    tags = values.get("tags")
    joined = ",".join(str(tag) for tag in tags) if isinstance(tags, list | tuple) else ""
    return AdapterNotes(star=values.get("star") is True, tags=split_tags(joined), low=low, high=high,
                        cover=str(values.get("cover", ""))[:MAX_TAG])


def _file(home: Home) -> Any:
    return home.path / "library.json"
