"""Keys by which programs sign in: made by a person, kept as hashes only."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, HomeError, safe_name, write_home_file

_PREFIX = "atelier-"   # so that a key that got into a text is found there
MOST_KEYS = 100


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The record of a program's key: its name and its hash, never the key itself."""

    name: str      # what the person calls it
    created: str   # UTC, ISO 8601
    sha256: str    # a key is 32 random bytes: no slow hash is needed where nothing can be guessed


def make_key(home: Home, name: str) -> str:
    """Make a key; returns its text, which is kept nowhere and can't be shown again.

    Raises:
        HomeError: the name can't be used or is taken, or the home can't be written.
    """
    name = safe_name(name)
    with FileLock(_file(home).with_suffix(".lock")):
        keys = list_keys(home)
        if name.casefold() in {key.name.casefold() for key in keys}:
            raise HomeError(f"There is already a key named {name!r}. Choose another name, or delete that key first.")
        if len(keys) >= MOST_KEYS:
            raise HomeError(f"There are already {MOST_KEYS} keys, which is the limit. Delete one that is no longer "
                            "used.")
        text = _PREFIX + secrets.token_urlsafe(32)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        _save(home, [*keys, ApiKey(name, created, _hash(text))])
    return text


def list_keys(home: Home) -> list[ApiKey]:
    """The keys, oldest first; none where the file is missing or damaged, so that nobody gets in by damaging it."""
    try:
        return [ApiKey(**key) for key in parse_json(_file(home).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def delete_key(home: Home, name: str) -> None:
    """Delete a key: programs that use it are refused from now on.

    Raises:
        HomeError: there is none of this name, or the home can't be written.
    """
    with FileLock(_file(home).with_suffix(".lock")):
        keys = list_keys(home)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            names = ", ".join(key.name for key in keys) or "none yet"
            raise HomeError(f"There is no key named {name!r}. Your keys: {names}.")
        _save(home, left)


def is_key(home: Home, text: str) -> bool:
    """Whether this is the text of one of the keys."""
    digest = _hash(text)
    return any(secrets.compare_digest(key.sha256, digest) for key in list_keys(home))


def _file(home: Home) -> Path:
    return home.state / "keys.json"


def _save(home: Home, keys: list[ApiKey]) -> None:
    write_home_file(_file(home), json.dumps([asdict(key) for key in keys]).encode())
    _file(home).chmod(0o600)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
