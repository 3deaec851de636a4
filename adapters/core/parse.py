"""What strangers write: JSON and TOML, where whatever can't be read is a ValueError, and paths, which may be anything.

Python's own readers raise other errors for lists nested ten thousand deep, for integers of five thousand digits, and
for names of five thousand letters.
"""

from __future__ import annotations

import json
import os
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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
