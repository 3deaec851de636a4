"""Whether the adapters of a home hold ordinary numbers: read once for each file, and remembered by its time and size.

A file that was put into the folder by hand went through no gate, and one NaN would spoil every picture, merge and
search that it takes part in. The index may be deleted: that only costs the time to read the files again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from atelier.adapters.core.parse import parse_json
from atelier.adapters.formats.native import adapter_problem
from atelier.app.store.home import Home, HomeError, write_home_file

INDEX = "health.json"
Entry = tuple[int, int, str]   # time of the file, its size, what is wrong with it


class FileState(NamedTuple):
    """A file's path, time and size: a result that was stored counts for as long as the last two are the same."""

    path: Path
    modified: int   # nanoseconds since 1970
    size: int       # bytes


def problems(home: Home, files: Iterable[FileState]) -> dict[str, str]:
    """What is wrong with the adapter files that hold something else than ordinary numbers, by their names."""
    index = home.state / INDEX
    known = _read(index)
    found: dict[str, Entry] = {}
    for path, modified, size in files:
        entry = known.get(path.name)
        fresh = entry is not None and entry[:2] == (modified, size)
        found[path.name] = entry if entry and fresh else (modified, size, adapter_problem(path))
    if any(known.get(name) != entry for name, entry in found.items()):
        _write(home, {**known, **found})
    return {name: entry[2] for name, entry in found.items() if entry[2]}


def _read(path: Path) -> dict[str, Entry]:
    """The index; empty when it is missing or damaged."""
    try:
        known = parse_json(path.read_bytes())
        return {name: (int(entry[0]), int(entry[1]), str(entry[2])) for name, entry in known.items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError):
        return {}


def _write(home: Home, entries: Mapping[str, Entry]) -> None:
    here = {path.name for path in home.adapters.iterdir()}
    kept = {name: entry for name, entry in entries.items() if name in here}
    with suppress(HomeError):   # a full disk must not keep anybody from looking at the library
        write_home_file(home.state / INDEX, json.dumps(kept).encode())
