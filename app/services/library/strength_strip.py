"""The same picture at four strengths of an adapter, to see what its strength does; drawn once for each adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from atelier.adapters.core.parse import parse_json
from atelier.app.services.draw import suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.store.home import Home, write_home_file
from atelier.app.store.library import AdapterCard, adapter_hash
from atelier.app.store.mixes import MixEntry
from atelier.app.store.previews import is_showable
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.sample import DrawRequest

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
_SEED, _STEPS = 7, 8   # as the previews of a training


def draw_strip(home: Home, engine: Engine, card: AdapterCard) -> Iterator[dict[float, str]]:
    """Draw at each strength; yields the pictures so far, as data URIs by strength, and stores them at the end.

    Raises:
        BaseError, FileError, MountError, HomeError: as drawing does.
    """
    request = DrawRequest(prompt=suggested_prompt(card), seed=_SEED, steps=_STEPS)
    pictures: dict[float, str] = {}
    for strength in STRENGTHS:
        [picture] = engine.draw(card.base, [(card.path, MixEntry(card.name, strength))], request)
        pictures[strength] = thumbnail(picture)
        yield dict(pictures)
    file = _file(home, card)
    file.parent.mkdir(exist_ok=True)
    write_home_file(file, json.dumps([pictures[strength] for strength in STRENGTHS]).encode())


def stored_strip(home: Home, card: AdapterCard) -> dict[float, str]:
    """The pictures that were drawn before; empty where there are none."""
    with suppress(OSError, ValueError, TypeError):
        pictures = parse_json(_file(home, card).read_text(encoding="utf-8"))
        if len(pictures) == len(STRENGTHS) and all(is_showable(picture) for picture in pictures):
            return dict(zip(STRENGTHS, pictures, strict=True))
    return {}


def _file(home: Home, card: AdapterCard) -> Path:
    return home.state / "strips" / f"{adapter_hash(card)}.json"
