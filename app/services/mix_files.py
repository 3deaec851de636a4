"""Mixes as files to share: adapters by the hash of their weights, so that another machine finds its own copies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, adapter_hash, find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry, SavedMix, mix_from_values
from atelier.app.text import mix as words
from atelier.training.config.train_config import EMBEDDED

FORMAT, VERSION = "atelier mix", 1
MAX_BYTES, MAX_ADAPTERS = 1_000_000, 32


def mix_file(home: Home, mix: SavedMix) -> bytes:
    """A Mix as a file that can be shared; it names no folder of this machine.

    Raises:
        HomeError: the Mix is empty, or one of its adapters is gone.
    """
    if not mix.entries:
        raise HomeError("The mix is empty. Add at least one adapter.")
    adapters = [{**asdict(entry), **_facts(find_adapter(home, entry.name))} for entry in mix.entries]
    values = {"format": FORMAT, "version": VERSION, "method": mix.method, "prompt": mix.prompt, "seed": mix.seed,
              "base": PurePath(mix.base).name, "adapters": adapters}   # fmt: skip
    return json.dumps(values, indent=1, ensure_ascii=False).encode()


def _facts(card: AdapterCard) -> dict[str, Any]:
    return {"sha256": adapter_hash(card), "kind": card.kind, "family": card.family, "trigger": card.trigger,
            "bytes": card.bytes}   # fmt: skip


def open_mix_file(home: Home, path: Path) -> tuple[SavedMix, list[str]]:
    """The Mix of a shared file with the adapters that are here, and a sentence on each one that is not, or differs.

    Raises:
        HomeError: it is not such a file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HomeError(words.NOT_A_MIX)
        values = parse_json(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise HomeError(words.NOT_A_MIX)
        parts = list(values["adapters"])[:MAX_ADAPTERS]
        mix = mix_from_values({**values, "base": EMBEDDED, "shares": parts})
        notes = list[str]()
        found = [_find(home, entry, part, notes) for entry, part in zip(mix.entries, parts, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise error if isinstance(error, HomeError) else HomeError(words.NOT_A_MIX) from None
    return replace(mix, entries=tuple(entry for entry in found if entry)), notes


def _find(home: Home, entry: MixEntry, part: Mapping[str, Any], notes: list[str]) -> MixEntry | None:
    """The entry under its adapter's name here; None where it is missing. ``notes`` gets a sentence where it differs."""
    wanted, kind = str(part.get("sha256", "")), str(part.get("kind", ""))
    cards = list_adapters(home)
    named = next((card for card in cards if card.name == entry.name), None)
    # Hashing a library takes a while: only adapters of the same kind are looked at.
    same = [*filter(None, [named]), *(card for card in cards if card.kind == kind and card != named)]
    card = next((card for card in same if wanted and adapter_hash(card) == wanted), None)
    if card is None and named is None:
        size = part.get("bytes")
        notes.append(words.missing(entry.name, kind, size if isinstance(size, int) else 0,
                                   str(part.get("trigger", "")), wanted))   # fmt: skip
        return None
    if card is None:
        notes.append(words.other_file(entry.name))
    elif card.name != entry.name:
        notes.append(words.renamed(entry.name, card.name))
    return replace(entry, name=(card or named or entry).name)
