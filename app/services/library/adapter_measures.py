"""What is measured of an adapter of the library: the strengths it works at, and a word that draws its subject as well.

Stored under the hash of its weights, so that a copy or another name keeps it; deleting the file costs the measurement.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.adapters.core.parse import parse_json
from atelier.app.services.draw import suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.store.adapter_notes import USUAL_RANGE, AdapterNotes, read_notes, save_notes
from atelier.app.store.home import Home, write_home_file
from atelier.app.store.library import AdapterCard, adapter_hash

if TYPE_CHECKING:
    from atelier.adapters.core.base import AdapterSet
    from atelier.training.base_models.base_model import BaseModel


@dataclass(frozen=True, slots=True)
class AdapterMeasures:
    """The proposed range of strength, and the ordinary word that draws most of the subject."""

    low: float
    high: float
    word: str = ""
    share: float = 0.0   # of the trigger word's effect


def measure_adapter(home: Home, engine: Engine, card: AdapterCard) -> AdapterMeasures:
    """Measure an adapter and store the result; the range becomes that of its slider, unless a person chose another.

    Raises:
        BaseError, FileError, MountError: as drawing does.
        HomeError: the home can't be written.
    """
    from atelier.training.measures.leak import measure_leaks
    from atelier.training.measures.strength_range import measure_strengths, propose_range

    prompt = suggested_prompt(card)

    def work(model: BaseModel, adapters: list[AdapterSet]) -> AdapterMeasures:
        """Measure strengths, and words where the prompt has the trigger word."""
        low, high = propose_range(measure_strengths(model, adapters[0], prompt))
        subject = f"{card.trigger} {card.subject}".strip()
        template = prompt.replace(subject, "{}") if subject and "{" not in prompt else ""
        if "{}" not in template or not card.subject:
            return AdapterMeasures(low, high)
        # Where the trigger word is the class word, nothing tells it from a leak.
        words = [word for word in [card.subject.lower()] if word != card.trigger.lower()]
        leaks = measure_leaks(model, adapters[0], template, subject, words)
        return AdapterMeasures(low, high, leaks[0].word, leaks[0].share) if leaks else AdapterMeasures(low, high)

    measures = engine.measure(card.base, [card.path], work)
    file = _file(home, card)
    file.parent.mkdir(exist_ok=True)
    write_home_file(file, json.dumps(asdict(measures)).encode())
    notes = read_notes(home).get(card.name, AdapterNotes())
    if (notes.low, notes.high) == USUAL_RANGE:
        save_notes(home, card.name, low=0.0, high=measures.high)
    return measures


def read_measures(home: Home, card: AdapterCard) -> AdapterMeasures | None:
    """What was measured of an adapter; None where nothing was."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        values = parse_json(_file(home, card).read_bytes())
        return AdapterMeasures(float(values["low"]), float(values["high"]), str(values["word"]), float(values["share"]))
    return None


def _file(home: Home, card: AdapterCard) -> Path:
    return home.state / "measures" / f"{adapter_hash(card)}.json"
