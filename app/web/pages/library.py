"""Library: every adapter as a card; the details of one, to use, export or delete it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.family import family_title
from atelier.adapters.core.parse import parse_toml
from atelier.adapters.formats.export import PRECISIONS, ExportReport
from atelier.adapters.formats.foreign_metadata import find_tags
from atelier.adapters.formats.low_rank import EXACT, LowRankLimits
from atelier.adapters.formats.native import read_header, read_native_metadata
from atelier.adapters.formats.write_foreign import FORMS
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.services.draw import suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.services.import_child import import_files
from atelier.app.services.import_export import export_adapters
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import (
    AdapterCard,
    delete_adapter,
    find_adapter,
    list_adapters,
    list_unreadable,
    restore_adapter,
)
from atelier.app.store.textual_inversions import list_textual_inversions
from atelier.app.text import library as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.uploads import offer
from atelier.app.web.components.urls import page_url
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.fidelity import Fidelity

MAX_CARDS = 120   # cards at once: a page with thousands of pictures would not load


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the Library page: the adapters of ``home`` and the details of one; ``engine`` compares exports."""
    heading(words.TITLE, words.LEAD)
    search = gr.Textbox(label=words.SEARCH, show_label=False, placeholder=words.SEARCH, max_length=100,
                        elem_id="search")   # fmt: skip
    with gr.Accordion(words.IMPORT, open=False, elem_id="import"):
        import_drop = gr.File(file_count="multiple", file_types=[".safetensors"], label=words.IMPORT_DROP,
                              elem_id="import-files", elem_classes="drop-zone", height=120)   # fmt: skip
        import_results = panel("import-results", {})
    undo = panel("undo", {})
    chosen, trashed = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Row(elem_classes="layout layout-detail"):
        with gr.Column(scale=8):
            cards = panel("adapter-cards", {})
        with gr.Column(scale=4, elem_classes="surface details-column", visible=False) as details_column:
            details = panel("adapter-details", {})
            choices, export, file, report = _export_form()
    shown = [cards, details_column, details, chosen]
    import_drop.upload(lambda files, query: _import_files(home, files, query), [import_drop, search],
                       [*shown, import_drop, import_results], show_progress="minimal",
                       api_visibility="private")   # fmt: skip

    def on_load(request: gr.Request) -> list[Any]:
        """Show all adapters, and the one in the page's address."""
        return _show(home, "", request.query_params.get("adapter", ""))

    def on_action(event: gr.EventData, query: str) -> list[Any]:
        """Open the pressed adapter; an earlier export leaves the page."""
        return [*_show(home, query, action_of(event)[1]), gr.DownloadButton(visible=False), {}]

    def delete(event: gr.EventData, query: str, name: str) -> list[Any]:
        """Move the opened adapter to the trash."""
        return _delete(home, query, name) if action_of(event)[0] == "delete" else [gr.skip()] * 6

    demo.load(on_load, None, shown, **UNQUEUED)
    search.change(lambda query, name: _show(home, query, name), [search, chosen], shown, **UNQUEUED,
                  trigger_mode="always_last")   # fmt: skip
    cards.action(on_action, search, [*shown, file, report], **UNQUEUED)
    details.action(delete, [search, chosen], [*shown, undo, trashed], **UNQUEUED)
    undo.action(lambda query, gone: _undo(home, query, gone), [search, trashed], [*shown, undo, trashed], **UNQUEUED)
    form, precision, rank, _ = choices
    form.change(_on_format_change, form, [precision, rank], **UNQUEUED)
    exported = export.click(lambda name, *choices: _export(home, engine, name, choices), [chosen, *choices],
                            [file, report], api_visibility="private")   # fmt: skip
    exported.success(None, None, None, js=press_when_shown("download"))


def _on_format_change(form: str) -> tuple[gr.Dropdown, gr.Number]:
    """What can be chosen for a format: a native file has full precision, and only low-rank pairs have a rank."""
    own = form == "native"
    return (gr.Dropdown(interactive=not own, value="fp32" if own else "fp16"),
            gr.Number(visible=form in ("kohya", "diffusers"), value=0))


def _export_form() -> tuple[list[Any], gr.Button, gr.DownloadButton, Any]:
    """What can be chosen, the button, the file and the report."""
    with gr.Accordion(words.EXPORT, open=False, elem_id="export"):
        form = gr.Dropdown([(words.FORMATS[name], name) for name in FORMS], value="kohya", label=words.FORMAT,
                           elem_id="export-format")   # fmt: skip
        precision = gr.Dropdown([(words.PRECISIONS[name], name) for name in PRECISIONS], value="fp16",
                                label=words.PRECISION, elem_id="export-precision")   # fmt: skip
        rank = gr.Number(label=words.MAX_RANK, info=words.MAX_RANK_HINT, value=0, minimum=0, maximum=1024,
                         precision=0, elem_id="export-rank")   # fmt: skip
        recipe = gr.Checkbox(False, label=words.INCLUDE_RECIPE, info=words.INCLUDE_RECIPE_HINT,
                             elem_id="include-recipe")   # fmt: skip
        export = gr.Button(words.EXPORT_NOW, elem_id="export-now")
        report = panel("export-report", {})
        file = gr.DownloadButton(shared.DOWNLOAD, visible=False, elem_id="download")
    return [form, precision, rank, recipe], export, file, report


def _show(home: Home, query: str, name: str) -> list[Any]:
    """The cards that match, and the details of one adapter; an unknown name opens none."""
    adapters = list_adapters(home)
    try:
        card = find_adapter(home, name) if name else None
    except HomeError:
        card = None
    wanted = query.casefold().strip()
    found = [c for c in adapters if wanted in f"{c.name} {c.trigger} {c.subject} {c.title}".casefold()]
    cards = {
        "cards": [{"name": c.name, "picture": c.thumbnail, "initial": c.name[0].upper(), "about": _about(c),
                   "chosen": str(c == card).lower()} for c in found[:MAX_CARDS]],
        "more": words.more(len(found) - MAX_CARDS),
        "empty": "" if found else words.NOTHING_FOUND if adapters else words.EMPTY, "is_first": not adapters,
        "words": [words.textual_inversion(word.token, family_title(word.family))
                  for word in list_textual_inversions(home) if wanted in f"{word.name} {word.token}".casefold()],
        "unreadable": [words.unreadable(file.path.name, file.reason) for file in list_unreadable(home)],
    }   # fmt: skip
    return [cards, gr.Column(visible=card is not None), _details(card) if card else {}, card.name if card else ""]


def _about(card: AdapterCard) -> str:
    return " · ".join(part for part in (card.subject, _kind(card), format_bytes(card.bytes)) if part)


def _kind(card: AdapterCard) -> str:
    return KINDS[card.kind].title if card.kind in KINDS else card.algorithms or card.kind


def _details(card: AdapterCard) -> dict[str, Any]:
    facts = {
        words.KIND: _kind(card), words.CLASS_WORD: card.subject,
        shared.BASE_MODEL: card.title or family_title(card.family),
        words.TRAINED_ON: words.picture_count(card.pictures), shared.SIZE: format_bytes(card.bytes),
        shared.CREATED: shared.date_and_time(card.created.astimezone()), words.CAPTION_TAGS: _tags(card),
        words.NOTES: " ".join(card.notes),
    }   # fmt: skip
    return {
        "name": card.name, "trigger": card.trigger, "picture": card.thumbnail, "facts": _pairs(facts),
        "recipe": _pairs(_recipe(card)), "studio": page_url("studio", adapter=card.name),
    }   # fmt: skip


def _tags(card: AdapterCard, most: int = 8) -> str:
    """The most frequent words of the captions, if another tool trained it."""
    tags = find_tags(read_native_metadata(card.path), most) if card.algorithms else ()
    return ", ".join(tag for tag, _ in tags)


def _recipe(card: AdapterCard) -> dict[str, Any]:
    """The settings it was trained with; nothing when the file does not say."""
    text = read_header(card.path).info.recipe
    try:
        recipe = parse_toml(text)
    except ValueError:
        return {}
    return {**{k: v for k, v in recipe.items() if not isinstance(v, dict)}, **recipe.get("adapter", {})}


def _pairs(facts: dict[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in facts.items() if str(value)]


def _delete(home: Home, query: str, name: str) -> list[Any]:
    with show_errors():
        trashed = delete_adapter(home, name)
    return [*_show(home, query, ""), {"name": name}, str(trashed.name)]


def _undo(home: Home, query: str, trashed: str) -> list[Any]:
    with show_errors():
        path = restore_adapter(home, Path(trashed))
    return [*_show(home, query, path.stem), {}, ""]


def _export(home: Home, engine: Engine, name: str, choices: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """Write the file that the form asks for, and report how exact it is."""
    form, precision, rank, recipe = choices
    with show_errors():
        card = find_adapter(home, name)
        folder = home.state / "exports" / f"{form}-{precision}"
        folder.mkdir(parents=True, exist_ok=True)
        limits = LowRankLimits(rank=int(rank)) if rank and form in ("kohya", "diffusers") else EXACT
        path, report = export_adapters([(card, 1.0)], form, folder, precision, limits=limits, recipe=recipe)
        facts = _report_facts(report)
        if form != "native" and card.base and (card.base == EMBEDDED or engine.is_loaded(card.base)):
            facts = _with_comparison(facts, engine.compare_export(card.base, card.path, path, suggested_prompt(card)))
    return gr.DownloadButton(value=offer(path), visible=True), facts


def _report_facts(report: ExportReport) -> dict[str, Any]:
    """The report as its panel shows it."""
    facts = {
        shared.SIZE: format_bytes(report.bytes), words.LAYERS: report.layers, words.RANK: report.rank or "",
        words.ACCURACY: words.EXACT if report.exact else words.layer_error(report.max_error, report.mean_error),
        words.ENERGY: "" if report.exact else f"{report.energy:.2%}".replace("%", " %"),
        words.LEFT_OUT: len(report.left_out) or "", words.HASH: report.hash[:12],
    }   # fmt: skip
    tools = [{"name": tool, "answer": verdict.answer, "text": verdict.reason or words.LOADS[verdict.answer]}
             for tool, verdict in report.loads.items()]   # fmt: skip
    return {"facts": _pairs(facts), "tools": tools}


def _with_comparison(facts: dict[str, Any], fidelity: Fidelity) -> dict[str, Any]:
    """The report with the difference in the UNet's output, and two pictures from the same noise."""
    drawn = _pairs({words.OUTPUT_ERROR: f"{fidelity.unet_error:.2%}".replace("%", " %")})
    pictures = {"before": thumbnail(fidelity.before), "after": thumbnail(fidelity.after)}
    return {**facts, "facts": [*facts["facts"], *drawn], **pictures}


def _import_files(home: Home, files: list[str] | None, query: str) -> list[Any]:
    """Import the dropped files; each one that can't be used says why."""
    messages, name = [], ""
    with show_errors():
        for result in import_files(home, [Path(file) for file in files or []]):
            name = result.name or name
            text = words.imported(result.name, " ".join(result.notes)) if result.name else result.reason
            messages.append({"text": text, "ok": "yes" if result.name else ""})
    return [*_show(home, query, name), None, {"messages": messages}]
