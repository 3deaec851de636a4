"""Library: every adapter as a card; one of them opened, to use, export or delete it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import gradio as gr

from atelier.adapters.catalog import KINDS
from atelier.adapters.convert import FORMS
from atelier.adapters.export import PRECISIONS
from atelier.adapters.files import read_header

from .. import phrases, words
from ..address import address
from ..frame import POLL, heading, plainly
from ..home import Home, HomeError
from ..library import (
    AdapterCard,
    delete_adapter,
    export_adapter,
    find_adapter,
    list_adapters,
    list_unreadable,
    restore_adapter,
)
from ..panel import acted, panel


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the page."""
    heading(words.LIBRARY_TITLE, words.LIBRARY_LEAD)
    search = gr.Textbox(label=words.SEARCH, show_label=False, placeholder=words.SEARCH, max_length=100,
                        elem_id="search")   # fmt: skip
    undo = panel("undo", {})
    chosen, trashed = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Row(elem_classes="bench bench-detail"):
        with gr.Column(scale=8):
            cards = panel("cards", {})
        with gr.Column(scale=4, elem_classes="sheet side", visible=False) as side:
            detail = panel("adapter", {})
            form, precision, export, file, report = _export_form()
    shown = [cards, side, detail, chosen]

    def opened(request: gr.Request) -> list[Any]:
        return _show(home, "", request.query_params.get("adapter", ""))

    def act(event: gr.EventData, query: str) -> list[Any]:
        return [*_show(home, query, acted(event)[1]), gr.DownloadButton(visible=False), ""]

    def delete(event: gr.EventData, query: str, name: str) -> list[Any]:
        return _delete(home, query, name) if acted(event)[0] == "delete" else [gr.skip()] * 6

    demo.load(opened, None, shown, **POLL)
    search.change(lambda query, name: _show(home, query, name), [search, chosen], shown, **POLL,
                 trigger_mode="always_last")   # fmt: skip
    cards.act(act, search, [*shown, file, report], **POLL)
    detail.act(delete, [search, chosen], [*shown, undo, trashed], **POLL)
    undo.act(lambda query, gone: _undo(home, query, gone), [search, trashed], [*shown, undo, trashed], **POLL)
    form.change(lambda kind: gr.Dropdown(interactive=kind != "native", value="fp32" if kind == "native" else "fp16"),
                form, precision, **POLL)   # fmt: skip
    made = export.click(lambda *choice: _export(home, *choice), [chosen, form, precision], [file, report],
                        api_visibility="private")   # fmt: skip
    made.success(None, None, None, js="() => setTimeout(() => document.querySelector('#download').click(), 300)")


def _export_form() -> tuple[gr.Dropdown, gr.Dropdown, gr.Button, gr.DownloadButton, gr.Markdown]:
    with gr.Accordion(words.EXPORT, open=False, elem_id="export"):
        form = gr.Dropdown([(words.FORMS[name], name) for name in FORMS], value="kohya", label=words.FORM,
                           elem_id="form")   # fmt: skip
        precision = gr.Dropdown([(words.PRECISIONS[name], name) for name in PRECISIONS], value="fp16",
                                label=words.PRECISION, elem_id="precision")   # fmt: skip
        export = gr.Button(words.EXPORT_NOW, elem_id="export-now")
        report = gr.Markdown("", elem_classes="hint", elem_id="export-report")
        file = gr.DownloadButton(words.DOWNLOAD, visible=False, elem_id="download")
    return form, precision, export, file, report


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
        "cards": [{"name": c.name, "picture": c.thumbnail, "about": _about(c), "chosen": str(c == card).lower()}
                  for c in found],
        "none": "" if found else words.NOT_FOUND if adapters else words.NO_ADAPTERS,
        "unreadable": [phrases.unreadable(file.path.name, file.reason) for file in list_unreadable(home)],
    }   # fmt: skip
    return [cards, gr.Column(visible=card is not None), _detail(card) if card else {}, card.name if card else ""]


def _about(card: AdapterCard) -> str:
    return " · ".join(part for part in (card.subject, _kind(card), phrases.size(card.bytes)) if part)


def _kind(card: AdapterCard) -> str:
    return KINDS[card.kind].title if card.kind in KINDS else card.kind


def _detail(card: AdapterCard) -> dict[str, Any]:
    facts = {
        words.KIND: _kind(card), words.WHAT_IT_IS: card.subject, words.BASE: card.title,
        words.LEARNED_FROM: phrases.pictures(card.pictures), words.SIZE: phrases.size(card.bytes),
        words.MADE: phrases.moment(card.created.astimezone()),
    }   # fmt: skip
    return {
        "name": card.name, "trigger": card.trigger, "picture": card.thumbnail, "facts": _pairs(facts),
        "recipe": _pairs(_recipe(card)), "studio": address("studio", adapter=card.name),
    }   # fmt: skip


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


def _export(home: Home, name: str, form: str, precision: str) -> tuple[Any, str]:
    with plainly():
        card = find_adapter(home, name)
        folder = home.state / "exports" / f"{form}-{precision}"
        folder.mkdir(parents=True, exist_ok=True)
        report = export_adapter(card, form, folder, precision)
    file = gr.DownloadButton(value=str(folder / card.path.name), visible=True)
    return file, phrases.exported(report.bytes, report.layers, report.rank, report.exact, report.max_error)
