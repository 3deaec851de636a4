"""Well-known base models that can be downloaded: which there are, and what they need of the memory here."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from atelier.app.text import settings as words
from atelier.training.base_models.device import RESERVE, best_device, memory
from atelier.training.base_models.hub import needs_download
from atelier.training.config.assets import ASSETS


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An entry of ``assets/known_models.toml``."""

    id: str        # on the hub
    title: str
    family: str    # name of its Family
    licence: str
    bytes: int     # that are downloaded
    about: str     # a sentence


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a model needs here, in bytes without savings; 0 where it does not fit even with them."""

    draw: int
    train: int
    draw_saves: bool    # it fits only with memory savings
    train_saves: bool


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The list that comes with Atelier."""
    table = tomllib.loads((ASSETS / "known_models.toml").read_text(encoding="utf-8"))
    return tuple(KnownModel(**values) for values in table["model"])


def known_model(id: str) -> KnownModel | None:
    """The entry of a hub id; None where it is not in the list."""
    return next((known for known in known_models() if known.id == id), None)


def memory_needs(known: KnownModel, device: torch.device | None = None) -> MemoryNeeds:
    """What drawing one picture and training with the usual preset need here, of what was counted beforehand.

    The counts are those of ``benchmarks/memory_table.py``: counting takes a minute, too long for a page.
    """
    device = device or best_device()
    counts = _memory_counts()[known.family][_counted_as(device)]
    usable = (1 - RESERVE) * memory(device)[1]   # whatever others take of it at the moment

    def need(work: str) -> tuple[int, bool]:
        """Bytes, or 0 where it does not fit at all, and whether it fits only with savings."""
        plain, least = counts[work]
        return (plain, plain > usable) if least <= usable else (0, False)

    (draw, draw_saves), (train, train_saves) = need("draw"), need("train")
    return MemoryNeeds(draw, train, draw_saves, train_saves)


def _counted_as(device: torch.device) -> str:
    """The device whose counts hold for this one: what matters is whose memory it is, and whether steps are recorded."""
    if device.type in ("cuda", "cpu", "mps"):
        return device.type
    return "xpu"


@cache
def _memory_counts() -> dict[str, dict[str, dict[str, tuple[int, int]]]]:
    """By family, device and work: bytes without savings, and with as many as help."""
    counts: dict[str, Any] = json.loads((ASSETS / "known_models_memory.json").read_text(encoding="utf-8"))
    return counts


def downloadable_titles() -> dict[str, str]:
    """Known models as lists to choose from name them, id → title; those that are not here say so."""
    return {known.id: words.known_title(known.title, known.bytes if needs_download(known.id) else 0)
            for known in known_models()}   # fmt: skip
