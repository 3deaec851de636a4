"""Intruder dimensions of an adapter of the library, beside its other details; apart, for it needs the base model."""

from __future__ import annotations

from typing import Any

from atelier.adapters.formats.native import load_adapter
from atelier.app.services.import_export import weights_of
from atelier.app.store.library import AdapterCard
from atelier.training.measures.intruder_dimensions import count_intruders

MOST_LAYERS = 5   # that are named


def intruder_values(card: AdapterCard) -> dict[str, Any]:
    """How many of its strongest directions are intruders, and the first layers that have any.

    Raises:
        FileError, BaseError: the adapter or its base model can't be read, or they don't fit.
    """
    found = count_intruders(load_adapter(card.path), weights_of([(card, 1.0)]))
    return {"intruders": found.count, "directions": found.directions, "intruders_in": list(found.layers[:MOST_LAYERS])}
