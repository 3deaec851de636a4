"""A training that continues an adapter of the library: which one is meant, and what it decides."""

from __future__ import annotations

from dataclasses import replace

from atelier.adapters.formats.native import read_header
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, adapter_hash, find_adapter, find_adapter_by_hash
from atelier.app.store.models import check_family
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import TrainConfig

_HASH_LENGTH = 64


def find_start(home: Home, given: str) -> AdapterCard:
    """The adapter that a recipe continues from, by its name or the hash of its weights.

    Raises:
        HomeError: there is none, or it can't be trained further.
    """
    card = find_adapter_by_hash(home, given) if len(given) == _HASH_LENGTH else None
    if card is None and len(given) == _HASH_LENGTH and all(sign in "0123456789abcdef" for sign in given):
        raise HomeError(f"The recipe continues from an adapter with the hash {given[:12]}, which is not in your "
                        "library. Import it, or empty the setting continue_from.")
    card = card or find_adapter(home, given)
    if card.kind not in KINDS:
        raise HomeError(f"{card.name} was imported in a form that can't be trained further. Make a copy of it in the "
                        "Library first: the copy is a LoRA.")
    return card


def continued_config(config: TrainConfig, start: AdapterCard) -> TrainConfig:
    """The recipe with what the adapter decides: its hash, its kind with its options, and words where none are given.

    Raises:
        HomeError: it was made for another family of base models.
        BaseError, FileError: the base model or the adapter can't be read.
    """
    check_family(identify(config.base, config.base_options), [start])
    words = {"trigger": config.trigger or start.trigger}
    if config.subject == TrainConfig().subject and start.subject:
        words["subject"] = start.subject
    return replace(config, continue_from=adapter_hash(start), kind=start.kind,
                   adapter=read_header(start.path).settings, **words)   # fmt: skip
