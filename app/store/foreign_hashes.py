"""Which file other tools know an adapter by: the hash of the one it was imported from, or was last exported to.

A1111 names adapters in its pictures by the first 12 digits of this hash, and finds them by it. The index may be
deleted: pictures then name an adapter by the hash of its own file until it is exported again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from atelier.adapters.core.parse import parse_json
from atelier.adapters.formats.native import data_hash, read_metadata
from atelier.app.store.home import Home, HomeError, write_home_file
from atelier.app.store.library import AdapterCard, adapter_hash

INDEX = "other_files.json"


def remember_file(card: AdapterCard, path: Path) -> None:
    """Note that other tools have ``path`` for this adapter."""
    index = _index(card)
    known = dict(_read(index))
    known[adapter_hash(card)] = known_as(path)
    with suppress(HomeError):   # a full disk must not undo an import or an export
        write_home_file(index, json.dumps(known).encode())


def hash_elsewhere(card: AdapterCard) -> str:
    """The hash by which A1111 knows an adapter, in hexadecimal; empty where it was neither imported nor exported."""
    return _read(_index(card)).get(adapter_hash(card), "")


def known_as(path: Path) -> str:
    """A1111's hash of an adapter file: what its header says, else SHA-256 of the bytes behind the header."""
    return read_metadata(path).get("sshs_model_hash") or data_hash(path)


def civitai_hashes(path: Path) -> dict[str, str]:
    """The hashes of a file in the words of Civitai and the tools that look it up there."""
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest()
    return {"SHA256": whole.upper(), "AutoV2": whole[:10].upper(), "AutoV3": data_hash(path)[:12].upper()}


def _index(card: AdapterCard) -> Path:
    return Home(card.path.parent.parent).state / INDEX


def _read(path: Path) -> Mapping[str, str]:
    """The index; empty when it is missing or damaged."""
    try:
        known = parse_json(path.read_bytes())
        return {str(own): str(other) for own, other in known.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
