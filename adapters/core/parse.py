"""What strangers write: JSON and TOML, where whatever can't be read is a ValueError, and paths, which may be anything.

Python's own readers raise other errors for lists nested ten thousand deep, for integers of five thousand digits, and
for names of five thousand letters. They also let halves of characters through, which nothing can write again.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

_HALVES = re.compile("[\ud800-\udfff]")   # of characters beyond 16 bits, as UTF-16 writes them
_MAY_HAVE_HALVES = re.compile(r"\\u[dD]|[\ud800-\udfff]")
_BYTES_MAY_HAVE_HALVES = re.compile(rb"\\u[dD]|\xed[\xa0-\xbf]")


def parse_json(text: str | bytes) -> Any:
    """Read JSON. U+FFFD stands where there is half a character.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        found = json.loads(text)
        found_halves = _BYTES_MAY_HAVE_HALVES.search(text) if isinstance(text, bytes) else _MAY_HAVE_HALVES.search(text)
        return without_halves(found) if found_halves else found
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def without_halves(value: Any) -> Any:
    """Plain data in which U+FFFD stands for each half of a character: no file, page or tokenizer takes those.

    A browser sends them where a limit cuts a character in two; names of files that are no UTF-8 have them as well.

    >>> without_halves({"a": ["\\ud83d", "\\ud83e\\udd8a"]}) == {"a": ["\ufffd", "\U0001f98a"]}
    True
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _HALVES.search(value) else value
    if isinstance(value, dict):
        return {without_halves(key): without_halves(each) for key, each in value.items()}
    return type(value)(map(without_halves, value)) if type(value) in (list, tuple) else value


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        ValueError: it is none, nested too deeply, or holds a number with too many digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_path(text: str) -> Path:
    """Read a path, with ``~`` for a home folder; a text that no file can be called by becomes a path of no file."""
    path = Path(text)
    try:
        with suppress(RuntimeError):   # the home of somebody who is unknown here
            path = path.expanduser()
        path.exists()
    except (OSError, ValueError):   # too long, for one
        return Path(os.devnull, "no file")
    return path
