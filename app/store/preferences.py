"""What a person chose for everything in a home: the precision that drawings use.

Apart from ``home.py``, which knows where files are and not what is in them.
"""

from __future__ import annotations

import json
from contextlib import suppress

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, HomeError, write_home_file
from atelier.training.config.train_config import PRECISIONS


def drawing_precision(home: Home) -> str:
    """The precision that drawings use: ``auto`` until somebody has chosen another."""
    with suppress(OSError, ValueError, AttributeError):
        chosen = parse_json(home.preferences.read_text(encoding="utf-8")).get("drawing_precision")
        if chosen in PRECISIONS:
            return chosen
    return PRECISIONS[0]


def save_drawing_precision(home: Home, precision: str) -> None:
    """Let drawings use another precision from now on.

    Raises:
        HomeError: there is no such precision, or the home can't be written.
    """
    if precision not in PRECISIONS:
        raise HomeError(f"{precision!r} is not a precision; use one of {', '.join(PRECISIONS)}.")
    write_home_file(home.preferences, json.dumps({"drawing_precision": precision}).encode())
