"""What the Library can do with an adapter beside using and exporting it: draw its strengths, copy, merge, extract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from atelier.adapters.formats.low_rank import EXACT, LowRankLimits
from atelier.app.jobs.jobs import read_status, run_folders
from atelier.app.services.engine import Engine
from atelier.app.services.import_export import extract_adapter, merge_adapters
from atelier.app.services.library.adapter_measures import measure_adapter, read_measures
from atelier.app.services.library.strength_strip import draw_strip, stored_strip
from atelier.app.services.trash import list_trash
from atelier.app.store.home import Home
from atelier.app.store.library import AdapterCard, find_adapter, list_adapters
from atelier.app.store.models import base_choices
from atelier.app.text import library as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, show_errors
from atelier.app.web.components.panel import panel
from atelier.training.config.run_folder import RunFolder
from atelier.training.measures.leak import LEAK

_WAITING: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
_LOOKED_AT = 30      # newest runs in which an adapter's own is looked for
_IN_TRASH = 100      # files that are listed


class ToolParts(NamedTuple):
    """What a person presses and fills in for the opened adapter."""

    strip: gr.Button
    measure: gr.Button
    pictures: Any
    name: gr.Textbox
    rank: gr.Number
    other: gr.Dropdown
    own_strength: gr.Number
    other_strength: gr.Number
    make: gr.Button


class ExtractParts(NamedTuple):
    """What a person presses and fills in for an adapter out of two base models."""

    tuned: gr.Dropdown
    plain: gr.Dropdown
    name: gr.Textbox
    rank: gr.Number
    extract: gr.Button


def place_tools() -> ToolParts:
    """Place what can be done with the opened adapter."""
    with gr.Row():
        strip = gr.Button(words.DRAW_STRIP, elem_id="draw-strip", size="sm")
        measure = gr.Button(words.MEASURE, elem_id="measure-adapter", size="sm")
    pictures = panel("strength-strip", {})
    with gr.Accordion(words.COPY_TOOLS, open=False, elem_id="copy-tools"):
        name = gr.Textbox(label=words.NEW_NAME, max_length=64, elem_id="copy-name")
        rank = gr.Number(0, label=words.NEW_RANK, info=words.NEW_RANK_HINT, minimum=0, maximum=1024, precision=0,
                         elem_id="copy-rank")   # fmt: skip
        other = gr.Dropdown([(words.NOBODY, "")], value="", label=words.OTHER, elem_id="merge-other",
                            allow_custom_value=True)   # fmt: skip
        with gr.Row():
            own = gr.Number(1, label=words.OWN_STRENGTH, step=0.1, elem_id="merge-own")
            strength = gr.Number(1, label=words.OTHER_STRENGTH, step=0.1, elem_id="merge-strength")
        make = gr.Button(words.MAKE_COPY, elem_id="make-copy")
    return ToolParts(strip, measure, pictures, name, rank, other, own, strength, make)


def place_extract(home: Home) -> ExtractParts:
    """Place the form for the difference between two base models."""
    with gr.Accordion(words.EXTRACT, open=False, elem_id="extract"):
        bases = list(base_choices(home, {}))
        with gr.Row():
            tuned = gr.Dropdown(bases, value=None, label=words.TUNED, allow_custom_value=True, elem_id="extract-tuned")
            plain = gr.Dropdown(bases, value=None, label=words.PLAIN, allow_custom_value=True, elem_id="extract-plain")
        with gr.Row():
            name = gr.Textbox(label=words.NEW_NAME, max_length=64, elem_id="extract-name")
            rank = gr.Number(16, label=words.NEW_RANK, minimum=1, maximum=1024, precision=0, elem_id="extract-rank")
        extract = gr.Button(words.EXTRACT_NOW, elem_id="extract-now")
    return ExtractParts(tuned, plain, name, rank, extract)


def connect_tools(
    home: Home, engine: Engine, parts: ToolParts, chosen: gr.Textbox,
    extraction: ExtractParts, shown: tuple[Callable[[str], list[Any]], Sequence[Any]],
) -> None:   # fmt: skip
    """Connect the tools.

    Args:
        home: has the library.
        engine: draws.
        parts: the tools of the opened adapter.
        chosen: the name of the opened adapter.
        extraction: the form for two base models.
        shown: how a new adapter is opened by its name, and what then changes on the page.
    """
    open_adapter, outputs = shown

    def draw(name: str) -> Iterator[dict[str, Any]]:
        """Draw the opened adapter at each strength, one picture after the other."""
        with show_errors():
            for pictures in draw_strip(home, engine, find_adapter(home, name)):
                yield _strip(pictures)

    def make(name: str, new: str, *values: Any) -> list[Any]:
        """Write the new adapter and open it."""
        with show_errors():
            rank, other, *strengths = values
            return open_adapter(_merged(home, name, new, rank, other, strengths).name)

    def extract(tuned: str | None, plain: str | None, name: str, rank: float) -> list[Any]:
        """Extract an adapter and open it."""
        with show_errors():
            limits = LowRankLimits(rank=int(rank or 16))
            return open_adapter(extract_adapter(home, tuned or "", plain or "", name or "", limits).name)

    def measure(name: str) -> list[Any]:
        """Measure the opened adapter and show it again with what was found."""
        with show_errors():
            measure_adapter(home, engine, find_adapter(home, name))
            return open_adapter(name)

    parts.measure.click(measure, chosen, list(outputs), concurrency_id="draw", **_WAITING)
    parts.strip.click(draw, chosen, parts.pictures, concurrency_id="draw", **_WAITING)
    parts.make.click(make, [chosen, *parts[3:8]], list(outputs), **_WAITING)
    extraction.extract.click(extract, list(extraction[:4]), list(outputs), **_WAITING)
    chosen.change(partial(_opened, home), chosen, [parts.pictures, parts.other, parts.name], **UNQUEUED)


def _opened(home: Home, name: str) -> list[Any]:
    """The tools as they are for a newly opened adapter."""
    others = [card.name for card in list_adapters(home)[:200] if card.name != name]
    strip = _strip(stored_strip(home, find_adapter(home, name))) if name else {}
    return [strip, gr.Dropdown(choices=[(words.NOBODY, ""), *((one, one) for one in others)], value=""), ""]


def _merged(
    home: Home, name: str, new: str, rank: float | None, other: str | None, strengths: Sequence[float | None]
) -> AdapterCard:
    mine, others = (1.0 if value is None else float(value) for value in strengths)
    parts = [(find_adapter(home, name), mine), *([(find_adapter(home, other), others)] if other else [])]
    return merge_adapters(home, parts, new or "", LowRankLimits(rank=int(rank)) if rank else EXACT)


def _strip(pictures: dict[float, str]) -> dict[str, Any]:
    return {"pictures": [{"strength": f"{strength:g}", "picture": picture} for strength, picture in pictures.items()]}


def run_facts(home: Home, card: AdapterCard) -> dict[str, str]:
    """What the adapter's training measured at its end, where the run is still here."""
    for folder in reversed(run_folders(home)[-_LOOKED_AT:]):
        if not folder.name.endswith(f"-{card.name.replace(' ', '-')}"):
            continue
        status = read_status(RunFolder(folder))
        if status.measured and status.name == card.name:
            last = status.measured[-1]
            return {words.MEMORIZATION: words.memorization(last.memorization), words.DRIFT: f"{last.drift:.2f}"}
    return {}


def measured_facts(home: Home, card: AdapterCard) -> dict[str, str]:
    """What was measured of the adapter on this page."""
    measures = read_measures(home, card)
    if measures is None:
        return {}
    leak = words.leak(measures.word, measures.share, LEAK) if measures.word else ""
    return {words.PROPOSED: words.strengths(measures.low, measures.high), words.LEAK: leak}


def show_trash(home: Home) -> dict[str, Any]:
    """What can be put back, deleted last first."""
    files = list_trash(home)[:_IN_TRASH]
    return {"empty": not files, "files": [
        {"id": file.id, "name": file.name,
         "about": f"{words.TRASH_KINDS[file.kind]} · {shared.date_and_time(file.deleted.astimezone())}"}
        for file in files]}   # fmt: skip
