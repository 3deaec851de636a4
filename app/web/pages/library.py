"""Library: every adapter as a card; one of them opened, to use, export or delete it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.formats.export import PRECISIONS, ExportReport
from atelier.adapters.formats.foreign_metadata import find_tags
from atelier.adapters.formats.low_rank import EXACT, LowRankLimits
from atelier.adapters.formats.native import read_header, read_native_metadata
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.formats.write_foreign import FORMS
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.services.draw import suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.services.import_export import export_adapters, import_file
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import (
    AdapterCard,
    delete_adapter,
    find_adapter,
    list_adapters,
    list_unreadable,
    restore_adapter,
)
from atelier.app.text import library as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import POLL, heading, plainly
from atelier.app.web.components.panel import acted, panel
from atelier.app.web.components.uploads import offer
from atelier.app.web.components.urls import address
from atelier.training.base_models.base_info import TITLES
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.fidelity import Fidelity

# The button of the new file may take a moment to appear.
_DOWNLOAD = """() => {
  const press = (tries) => {
    const button = document.querySelector("#download");
    if (button && button.offsetParent) button.click();
    else if (tries) setTimeout(() => press(tries - 1), 100);
  };
  setTimeout(() => press(100), 300);
}"""
SHOWN = 120   # cards at once: a page with thousands of pictures would not load


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the page."""
    heading(words.TITLE, words.LEAD)
    search = gr.Textbox(label=words.SEARCH, show_label=False, placeholder=words.SEARCH, max_length=100,
                        elem_id="search")   # fmt: skip
    with gr.Accordion(words.IMPORT, open=False, elem_id="bring-in"):
        bring_in = gr.File(file_count="multiple", file_types=[".safetensors"], label=words.IMPORT_DROP,
                           elem_id="files", elem_classes="drop", height=120)   # fmt: skip
        brought = panel("brought", {})
    undo = panel("undo", {})
    chosen, trashed = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Row(elem_classes="bench bench-detail"):
        with gr.Column(scale=8):
            cards = panel("cards", {})
        with gr.Column(scale=4, elem_classes="sheet side", visible=False) as side:
            detail = panel("adapter", {})
            choices, export, file, report = _export_form()
    shown = [cards, side, detail, chosen]
    bring_in.upload(lambda files, query: _bring_in(home, files, query), [bring_in, search], [*shown, bring_in, brought],
                    show_progress="minimal", api_visibility="private")   # fmt: skip

    def opened(request: gr.Request) -> list[Any]:
        return _show(home, "", request.query_params.get("adapter", ""))

    def act(event: gr.EventData, query: str) -> list[Any]:
        return [*_show(home, query, acted(event)[1]), gr.DownloadButton(visible=False), {}]

    def delete(event: gr.EventData, query: str, name: str) -> list[Any]:
        return _delete(home, query, name) if acted(event)[0] == "delete" else [gr.skip()] * 6

    demo.load(opened, None, shown, **POLL)
    search.change(lambda query, name: _show(home, query, name), [search, chosen], shown, **POLL,
                  trigger_mode="always_last")   # fmt: skip
    cards.act(act, search, [*shown, file, report], **POLL)
    detail.act(delete, [search, chosen], [*shown, undo, trashed], **POLL)
    undo.act(lambda query, gone: _undo(home, query, gone), [search, trashed], [*shown, undo, trashed], **POLL)
    form, precision, rank, _ = choices
    form.change(_suits, form, [precision, rank], **POLL)
    made = export.click(lambda name, *wanted: _export(home, engine, name, wanted), [chosen, *choices], [file, report],
                        api_visibility="private")   # fmt: skip
    made.success(None, None, None, js=_DOWNLOAD)


def _suits(form: str) -> tuple[gr.Dropdown, gr.Number]:
    """What can be chosen for a form: a native file keeps every digit, and only pairs have a rank."""
    own = form == "native"
    return (gr.Dropdown(interactive=not own, value="fp32" if own else "fp16"),
            gr.Number(visible=form in ("kohya", "diffusers"), value=0))


def _export_form() -> tuple[list[Any], gr.Button, gr.DownloadButton, Any]:
    """What can be chosen, the button, the file and the report."""
    with gr.Accordion(words.EXPORT, open=False, elem_id="export"):
        form = gr.Dropdown([(words.FORMATS[name], name) for name in FORMS], value="kohya", label=words.FORMAT,
                           elem_id="form")   # fmt: skip
        precision = gr.Dropdown([(words.PRECISIONS[name], name) for name in PRECISIONS], value="fp16",
                                label=words.PRECISION, elem_id="precision")   # fmt: skip
        rank = gr.Number(label=words.MAX_RANK, info=words.MAX_RANK_HINT, value=0, minimum=0, maximum=1024,
                         precision=0, elem_id="rank")   # fmt: skip
        recipe = gr.Checkbox(False, label=words.INCLUDE_RECIPE, info=words.INCLUDE_RECIPE_HINT, elem_id="with-recipe")
        export = gr.Button(words.EXPORT_NOW, elem_id="export-now")
        report = panel("report", {}, elem_id="export-report")
        file = gr.DownloadButton(shared.DOWNLOAD, visible=False, elem_id="download")
    return [form, precision, rank, recipe], export, file, report


def _show(home: Home, query: str, name: str) -> list[Any]:
    """The cards that match, and the detail of one adapter; a name that is no adapter opens none."""
    adapters = list_adapters(home)
    try:
        card = find_adapter(home, name) if name else None
    except HomeError:
        card = None
    wanted = query.casefold().strip()
    found = [c for c in adapters if wanted in f"{c.name} {c.trigger} {c.subject} {c.title}".casefold()]
    cards = {
        "cards": [{"name": c.name, "picture": c.thumbnail, "initial": c.name[0].upper(), "about": _about(c),
                   "chosen": str(c == card).lower()} for c in found[:SHOWN]],
        "more": words.more(len(found) - SHOWN),
        "none": "" if found else words.NOTHING_FOUND if adapters else words.EMPTY,
        "unreadable": [words.unreadable(file.path.name, file.reason) for file in list_unreadable(home)],
    }   # fmt: skip
    return [cards, gr.Column(visible=card is not None), _detail(card) if card else {}, card.name if card else ""]


def _about(card: AdapterCard) -> str:
    return " · ".join(part for part in (card.subject, _kind(card), format_bytes(card.bytes)) if part)


def _kind(card: AdapterCard) -> str:
    return KINDS[card.kind].title if card.kind in KINDS else card.algorithms or card.kind


def _detail(card: AdapterCard) -> dict[str, Any]:
    facts = {
        words.KIND: _kind(card), words.CLASS_WORD: card.subject,
        shared.BASE_MODEL: card.title or TITLES.get(card.family, ""),
        words.TRAINED_ON: words.picture_count(card.pictures), shared.SIZE: format_bytes(card.bytes),
        shared.CREATED: shared.date_and_time(card.created.astimezone()), words.CAPTION_TAGS: _tags(card),
        words.NOTES: " ".join(card.notes),
    }   # fmt: skip
    return {
        "name": card.name, "trigger": card.trigger, "picture": card.thumbnail, "facts": _pairs(facts),
        "recipe": _pairs(_recipe(card)), "studio": address("studio", adapter=card.name),
    }   # fmt: skip


def _tags(card: AdapterCard, most: int = 8) -> str:
    """Words of the captions that another tool trained it with."""
    tags = find_tags(read_native_metadata(card.path), most) if card.algorithms else ()
    return ", ".join(tag for tag, _ in tags)


def _recipe(card: AdapterCard) -> dict[str, Any]:
    """The settings it was trained with; nothing when the file does not say."""
    text = read_header(card.path).metadata.get("atelier.recipe", "")
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}
    return {**{k: v for k, v in recipe.items() if not isinstance(v, dict)}, **recipe.get("adapter", {})}


def _pairs(facts: dict[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in facts.items() if str(value)]


def _delete(home: Home, query: str, name: str) -> list[Any]:
    with plainly():
        trashed = delete_adapter(home, name)
    return [*_show(home, query, ""), {"name": name}, str(trashed.name)]


def _undo(home: Home, query: str, trashed: str) -> list[Any]:
    with plainly():
        path = restore_adapter(home, Path(trashed))
    return [*_show(home, query, path.stem), {}, ""]


def _export(home: Home, engine: Engine, name: str, wanted: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """Write what the form asks for, and say how true it is."""
    form, precision, rank, recipe = wanted
    with plainly():
        card = find_adapter(home, name)
        folder = home.state / "exports" / f"{form}-{precision}"
        folder.mkdir(parents=True, exist_ok=True)
        limits = LowRankLimits(rank=int(rank)) if rank and form in ("kohya", "diffusers") else EXACT
        path, report = export_adapters([(card, 1.0)], form, folder, precision, limits=limits, recipe=recipe)
        told = _told(report)
        if form != "native" and card.base and (card.base == EMBEDDED or engine.is_loaded(card.base)):
            told = _compared(told, engine.compare_export(card.base, card.path, path, suggested_prompt(card)))
    return gr.DownloadButton(value=offer(path), visible=True), told


def _told(report: ExportReport) -> dict[str, Any]:
    """The report as its panel shows it."""
    facts = {
        shared.SIZE: format_bytes(report.bytes), words.LAYERS: report.layers, words.RANK: report.rank or "",
        words.ACCURACY: words.EXACT if report.exact else words.layer_error(report.max_error, report.mean_error),
        words.ENERGY: "" if report.exact else f"{report.energy:.2%}".replace("%", " %"),
        words.LEFT_OUT: len(report.left_out) or "", words.HASH: report.hash[:12],
    }   # fmt: skip
    tools = [{"name": tool, "answer": verdict.answer, "said": verdict.reason or words.LOADS[verdict.answer]}
             for tool, verdict in report.loads.items()]   # fmt: skip
    return {"facts": _pairs(facts), "tools": tools}


def _compared(told: dict[str, Any], fidelity: Fidelity) -> dict[str, Any]:
    """The report with what the difference does in drawing: a figure, and two pictures from the same noise."""
    drawn = _pairs({words.OUTPUT_ERROR: f"{fidelity.unet_error:.2%}".replace("%", " %")})
    pictures = {"before": thumbnail(fidelity.before), "after": thumbnail(fidelity.after)}
    return {**told, "facts": [*told["facts"], *drawn], **pictures}


def _bring_in(home: Home, files: list[str] | None, query: str) -> list[Any]:
    """Take dropped files into the library; what can't be used says why."""
    said, name = [], ""
    for file in files or []:
        try:
            taken = import_file(home, Path(file))
        except (FileError, HomeError) as error:
            said.append({"text": str(error), "good": ""})
        else:
            name = taken.card.name
            said.append({"text": words.imported(name, " ".join(taken.notes)), "good": "yes"})
    return [*_show(home, query, name), None, {"said": said}]
