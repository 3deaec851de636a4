"""Hashes of checkpoints, by which other tools name base models; each file is read once for it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, write_home_file

_LEGACY_AT, _LEGACY_BYTES, _LEGACY_DIGITS = 1 << 20, 1 << 16, 8   # A1111's first hash: 64 KiB, one MiB into the file


def matches_hash(home: Home, path: Path, hash: str) -> bool:
    """Whether a checkpoint has a SHA-256 that begins so (A1111 shows 10 digits), or A1111's older hash of 8 digits.

    Folders have no hash, nor has a checkpoint one of another kind than these.
    """
    start = hash.lower().removeprefix("sha256:").removeprefix("0x")
    if not path.is_file() or not re.fullmatch("[0-9a-f]{8,64}", start):
        return False
    if len(start) == _LEGACY_DIGITS and _legacy_hash(path) == start:
        return True
    return _whole_hash(home, path).startswith(start)


def _legacy_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(_LEGACY_AT)
        return hashlib.sha256(file.read(_LEGACY_BYTES)).hexdigest()[:_LEGACY_DIGITS]


def _whole_hash(home: Home, path: Path) -> str:
    """SHA-256 of a file, remembered by its path, time and size."""
    index, facts = home.state / "model_hashes.json", path.stat()
    key = f"{path.resolve()} {facts.st_mtime_ns} {facts.st_size}"
    known = _read(index)
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        write_home_file(index, json.dumps(known).encode())
    return known[key]


def _read(index: Path) -> dict[str, str]:
    try:
        known = parse_json(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}
