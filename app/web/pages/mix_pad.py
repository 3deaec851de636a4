"""The part of the Mix Lab for two adapters: a pad on which both strengths move at once, and nine pictures around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from atelier.app.services.engine import Engine
from atelier.app.services.fuse import draw_pad
from atelier.app.store.home import Home
from atelier.app.store.mixes import MixEntry, SavedMix
from atelier.app.text import mix as words
from atelier.app.web.components.panel import panel
from atelier.training.runs.save_adapter import thumbnail

MAX_STRENGTH, PAD_STEPS = 2.0, 8   # the pad's strengths
NINE_FRACTIONS = (0.0, 0.5, 1.0)   # of the pad's strengths, in each direction of the nine pictures
START_STRENGTHS = (1.0, 1.0)


def place_pad() -> dict[str, Any]:
    """The controls that are shown for two adapters, closed at first."""
    with gr.Accordion(words.BOTH_STRENGTHS, open=False, elem_id="both-strengths"):
        pad = panel("strength-pad", {"rows": []})
        with gr.Row(elem_classes="actions"):
            nine = gr.Button(words.NINE, elem_id="draw-nine")
            swap = gr.Button(words.SWAP, elem_id="swap")
    return {"pad": pad, "nine": nine, "swap": swap}


def strength_pad(entries: Sequence[MixEntry]) -> dict[str, Any]:
    """The pad of two adapters, the first to the right and the second upwards; empty for any other number."""
    if len(entries) != 2:
        return {"rows": [], "label": words.TWO_FOR_PAD}
    names, now = (entries[0].name, entries[1].name), (entries[0].strength, entries[1].strength)
    steps = [MAX_STRENGTH * i / PAD_STEPS for i in range(PAD_STEPS + 1)]
    return {
        "title": words.pad(*names), "label": words.both_strengths(*names, now),
        "rows": [{"cells": [{"id": f"{across:g},{up:g}", "label": words.both_strengths(*names, (across, up)),
                             "pressed": str((across, up) == now).lower()} for across in steps]}
                 for up in reversed(steps)],
    }   # fmt: skip


def strengths_at(text: str) -> tuple[float, float]:
    """Both strengths from a pad cell's id, which may be anything: it comes from a browser."""
    try:
        first, second = (min(MAX_STRENGTH, max(0.0, float(part))) for part in text.split(","))
    except ValueError:
        return START_STRENGTHS
    return (first, second) if first == first and second == second else START_STRENGTHS


def cells_at(first: float, second: float) -> list[tuple[float, float]]:
    """Strengths of the nine pictures, row by row; the corners are neither, the first alone, the second alone, both."""
    return [(first * across, second * down) for down in NINE_FRACTIONS for across in NINE_FRACTIONS]


def nine_pictures(home: Home, engine: Engine, mix: SavedMix) -> dict[str, Any]:
    """Nine pictures from one seed, at both strengths and at half and none of them.

    Raises:
        HomeError, BaseError, BasisError, FileError, MountError, SettingError: each with a message for a person.
    """
    cells = cells_at(*(entry.strength for entry in mix.entries)) if len(mix.entries) == 2 else []
    pictures = draw_pad(home, engine, mix, cells)
    one, two = (entry.name for entry in mix.entries)
    return {"cells": [{"src": thumbnail(picture), "label": words.both_strengths(one, two, cell)}
                      for picture, cell in zip(pictures, cells, strict=True)]}   # fmt: skip
