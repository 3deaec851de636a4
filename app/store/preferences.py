"""What a person chose for everything in a home: the precision and the device that drawings use.

Apart from ``home.py``, which knows where files are and not what is in them.
"""

from __future__ import annotations

import json
from contextlib import suppress

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, HomeError, write_home_file
from atelier.training.base_models.device import AUTO_DEVICE, usable_devices
from atelier.training.config.train_config import PRECISIONS

_PRECISION, _DEVICE = "drawing_precision", "drawing_device"


def drawing_precision(home: Home) -> str:
    """The precision that drawings use: ``auto`` until somebody has chosen another."""
    chosen = _read(home).get(_PRECISION)
    return chosen if chosen in PRECISIONS else PRECISIONS[0]


def save_drawing_precision(home: Home, precision: str) -> None:
    """Let drawings use another precision from now on.

    Raises:
        HomeError: there is no such precision, or the home can't be written.
    """
    if precision not in PRECISIONS:
        raise HomeError(f"{precision!r} is not a precision; use one of {', '.join(PRECISIONS)}.")
    _write(home, _PRECISION, precision)


def drawing_device(home: Home) -> str:
    """The device that drawings use: ``auto``, the fastest, until somebody has chosen another.

    It can name a card that is not in this machine any more.
    """
    return _read(home).get(_DEVICE) or AUTO_DEVICE


def save_drawing_device(home: Home, device: str) -> None:
    """Let drawings use another device from now on.

    Raises:
        HomeError: this machine has no such device, or the home can't be written.
    """
    _write(home, _DEVICE, check_device(device))


def check_device(name: str) -> str:
    """The name itself.

    Raises:
        HomeError: this machine has no device of that name.
    """
    if name not in (here := usable_devices()):
        raise HomeError(f"{name!r} is not a device of this machine; use one of {', '.join(here)}.")
    return name


def _read(home: Home) -> dict[str, str]:
    """What is written there and is text; nothing where that can't be read."""
    with suppress(OSError, ValueError, AttributeError):
        found = parse_json(home.preferences.read_text(encoding="utf-8")).items()
        return {key: value for key, value in found if isinstance(value, str)}
    return {}


def _write(home: Home, key: str, value: str) -> None:
    write_home_file(home.preferences, json.dumps(_read(home) | {key: value}).encode())
