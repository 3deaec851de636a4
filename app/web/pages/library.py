"""Library: every adapter as a card; the details of one, to use, export or delete it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.family import FAMILIES, family_title
from atelier.adapters.core.parse import parse_toml
from atelier.adapters.formats.export import PRECISIONS, ExportReport
from atelier.adapters.formats.foreign_metadata import find_tags
from atelier.adapters.formats.low_rank import EXACT, LowRankLimits
from atelier.adapters.formats.native import read_header, read_native_metadata
from atelier.adapters.formats.write_foreign import FORMS
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.services.draw import suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.services.import_export import export_adapters
from atelier.app.services.library_list import PAGE, LibraryFilter, filter_adapters
from atelier.app.services.trash import restore
from atelier.app.store.adapter_notes import HIGHEST, LOWEST, AdapterNotes, read_notes, save_notes, split_tags
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import (
    AdapterCard,
    continued_from,
    delete_adapter,
    find_adapter,
    find_adapter_by_hash,
    list_adapters,
    list_unreadable,
    read_library,
    read_thumbnail,
    restore_adapter,
)
from atelier.app.store.previews import LARGE
from atelier.app.store.textual_inversions import list_textual_inversions
from atelier.app.text import library as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.uploads import offer
from atelier.app.web.components.urls import cover_url, page_url, thumbnail_url
from atelier.app.web.pages.library_import import connect_import, place_import
from atelier.app.web.pages.library_tools import (
    connect_tools,
    measured_facts,
    place_extract,
    place_tools,
    run_facts,
    show_trash,
)
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.fidelity import Fidelity

_MOST_RELATIVES = 8
_COLUMNS = 7   # outputs of everything that shows the list: see LibraryParts.shown


class LibraryParts(NamedTuple):
    """What the page has for the list and the opened adapter."""

    cards: Any
    column: gr.Column
    details: Any
    chosen: gr.Textbox
    tags: gr.Textbox
    low: gr.Number
    high: gr.Number

    @property
    def shown(self) -> list[Any]:
        """Everything that depends on the list or on the opened adapter."""
        return list(self)


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the Library page: the adapters of ``home`` and the details of one; ``engine`` compares exports."""
    heading(words.TITLE, words.LEAD)
    wanted = _filters()
    form = place_import()
    undo = panel("undo", {})
    trashed = gr.Textbox(visible=False)
    with gr.Row(elem_classes="layout layout-detail"):
        with gr.Column(scale=8):
            cards = panel("adapter-cards", {})
            with gr.Accordion(words.TRASH, open=False, elem_id="trash"):
                trash = panel("trash", {})
            extraction = place_extract(home)
        with gr.Column(scale=4, elem_classes="surface details-column", visible=False) as column:
            details = panel("adapter-details", {})
            chosen = gr.Textbox(visible=False)
            with gr.Row(elem_classes="notes"):
                tags = gr.Textbox(label=words.TAGS, info=words.TAGS_HINT, max_length=400, elem_id="tags")
                low = gr.Number(label=words.LOW, minimum=LOWEST, maximum=HIGHEST, step=0.25, elem_id="range-low")
                high = gr.Number(label=words.HIGH, minimum=LOWEST, maximum=HIGHEST, step=0.25, elem_id="range-high")
            tools = place_tools()
            choices, export, file, report = _export_form()
    parts = LibraryParts(cards, column, details, chosen, tags, low, high)
    connect_import(home, form, wanted, parts.shown, lambda values, name: _show(home, *_wanted(values), name))
    _connect_list(demo, home, wanted, parts, [file, report])
    _connect_trash(demo, home, wanted, parts, [undo, trashed, trash])
    _connect_notes(home, parts)
    connect_tools(home, engine, tools, chosen, extraction,
                  (lambda name: _show(home, LibraryFilter(), 0, name), parts.shown))   # fmt: skip
    form, precision, rank, _ = choices
    form.change(_on_format_change, form, [precision, rank], **UNQUEUED)
    exported = export.click(partial(_export, home, engine), [chosen, *choices],
                            [file, report], show_progress="minimal", api_visibility="private")   # fmt: skip
    exported.failure(lambda: {}, None, report, **UNQUEUED)   # or it would go on saying that it writes
    exported.success(None, None, None, js=press_when_shown("download"))


def _filters() -> list[Any]:
    """What decides which adapters are shown; the last is the number of the page."""
    with gr.Row(elem_classes="filters"):
        search = gr.Textbox(label=words.SEARCH, show_label=False, placeholder=words.SEARCH, max_length=100,
                            elem_id="search", min_width=220)   # fmt: skip
        starred = gr.Checkbox(False, label=words.STARRED, elem_id="starred", min_width=110)
        kind = gr.Dropdown([(words.ALL_KINDS, ""), *((kind.title, name) for name, kind in KINDS.items())], value="",
                           label=words.KIND, show_label=False, elem_id="filter-kind", min_width=150)   # fmt: skip
        base = gr.Dropdown([(words.ALL_BASES, ""), *((family_title(name), name) for name in FAMILIES)], value="",
                           label=shared.BASE_MODEL, show_label=False, elem_id="filter-base",
                           min_width=150)   # fmt: skip
        sort = gr.Dropdown([(title, key) for key, title in words.SORTS.items()], value="newest", label=words.SORT,
                           show_label=False, elem_id="sort", min_width=130)   # fmt: skip
    return [search, starred, kind, base, sort, gr.Number(0, visible=False)]


def _wanted(values: Sequence[Any]) -> tuple[LibraryFilter, int]:
    query, starred, kind, base, sort, page = values
    return LibraryFilter(query or "", bool(starred), kind or "", base or "", sort or ""), max(0, int(page or 0))


def _connect_list(
    demo: gr.Blocks, home: Home, wanted: Sequence[Any], parts: LibraryParts, cleared: Sequence[Any]
) -> None:
    """Show the list when the page opens and when something else is looked for; open the pressed adapter."""
    *filters, page = wanted

    def on_load(request: gr.Request) -> list[Any]:
        """Show all adapters, and the one in the page's address; how far that is, where many files are to be read."""
        if where := next(read_library(home), None):
            return [_reading(*where), *[gr.skip()] * (_COLUMNS - 1), "yes"]
        return [*_show(home, LibraryFilter(), 0, request.query_params.get("adapter", "")), ""]

    def read(request: gr.Request) -> Iterator[list[Any]]:
        """Read the files that were never read, and show the library."""
        for where in read_library(home):
            yield [_reading(*where), *[gr.skip()] * _COLUMNS]
        yield on_load(request)

    def on_action(event: gr.EventData, *values: Any) -> list[Any]:
        """Open the pressed adapter, an earlier export leaving the page; or turn the page."""
        *given, name = values
        looked_for, number = _wanted(given)
        action, pressed = action_of(event)
        if action == "page":
            number = int(pressed) if pressed.isdecimal() else 0
            return [*_show(home, looked_for, number, name), number, gr.skip(), gr.skip()]
        return [*_show(home, looked_for, number, pressed), number, gr.DownloadButton(visible=False), {}]

    unread = gr.Textbox("", visible=False)
    demo.load(on_load, None, [*parts.shown, unread], **UNQUEUED)
    # "yes" starts the reading; the empty one that ends it finds nothing to read.
    unread.change(read, None, [*parts.shown, unread], show_progress="hidden", api_visibility="private",
                  concurrency_limit=4)   # fmt: skip
    gr.on([control.change for control in filters],
          lambda *values: [*_show(home, _wanted([*values[:-1], 0])[0], 0, values[-1]), 0], [*filters, parts.chosen],
          [*parts.shown, page], **UNQUEUED, trigger_mode="always_last")   # fmt: skip
    parts.cards.action(on_action, [*wanted, parts.chosen], [*parts.shown, page, *cleared], **UNQUEUED)


def _connect_trash(
    demo: gr.Blocks, home: Home, wanted: Sequence[Any], parts: LibraryParts, controls: Sequence[Any]
) -> None:
    """The buttons of the opened adapter, the one that undoes, and those in the trash."""
    undo, trashed, trash = controls

    def press(event: gr.EventData, *values: Any) -> list[Any]:
        """Delete or close the opened adapter, or give it a star."""
        *given, name = values
        action, shown = action_of(event)[0], _wanted(given)
        if action == "delete":
            return [*_delete(home, *shown, name), show_trash(home)]
        if action == "star":
            save_notes(home, name, star=not read_notes(home).get(name, AdapterNotes()).star)
            return [*_show(home, *shown, name), gr.skip(), gr.skip(), gr.skip()]
        if action == "open":
            return [*_show(home, *shown, action_of(event)[1]), gr.skip(), gr.skip(), gr.skip()]
        if action == "close":
            return [*_show(home, *shown, ""), gr.skip(), gr.skip(), gr.skip()]
        return [gr.skip()] * (_COLUMNS + 3)

    def put_back(event: gr.EventData, *values: Any) -> list[Any]:
        """Restore what was pressed in the trash."""
        with show_errors():
            path = restore(home, action_of(event)[1])
        return [*_show(home, *_wanted(values), path.stem), {}, "", show_trash(home)]

    changed = [*parts.shown, undo, trashed, trash]
    parts.details.action(press, [*wanted, parts.chosen], changed, **UNQUEUED)
    undo.action(lambda *values: [*_undo(home, *_wanted(values[:-1]), values[-1]), show_trash(home)],
                [*wanted, trashed], changed, **UNQUEUED)   # fmt: skip
    trash.action(put_back, list(wanted), changed, **UNQUEUED)
    demo.load(lambda: show_trash(home), None, trash, **UNQUEUED)


def _connect_notes(home: Home, parts: LibraryParts) -> None:
    """Save tags and the range of strength as they are entered."""

    def save(name: str, tags: str, low: float | None, high: float | None) -> None:
        """Save all notes of the opened adapter."""
        if name:
            with show_errors():
                bounds = {"low": low, "high": high} if low is not None and high is not None else {}
                save_notes(home, name, tags=split_tags(tags or ""), **bounds)

    gr.on([parts.tags.blur, parts.tags.submit, parts.low.blur, parts.low.submit, parts.high.blur, parts.high.submit],
          save, [parts.chosen, parts.tags, parts.low, parts.high], None, **UNQUEUED)   # fmt: skip


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


def _show(home: Home, wanted: LibraryFilter, page: int, name: str) -> list[Any]:
    """One page of the cards that are wanted, and the details of one adapter; an unknown name opens none."""
    adapters, notes = list_adapters(home), read_notes(home)
    try:
        card = find_adapter(home, name) if name else None
    except HomeError:
        card = None
    found = filter_adapters(adapters, notes, wanted)
    page = min(page, max(0, len(found) - 1) // PAGE)
    of_card = notes.get(card.name, AdapterNotes()) if card else AdapterNotes()
    return [
        {**_cards(found[page * PAGE : (page + 1) * PAGE], notes, card), **_pages(page, len(found)),
         "empty": "" if found else words.NOTHING_FOUND if adapters else words.EMPTY, "is_first": not adapters,
         "words": [words.textual_inversion(word.token, family_title(word.family))
                   for word in list_textual_inversions(home)
                   if wanted.query.casefold() in f"{word.name} {word.token}".casefold()],
         "unreadable": [words.unreadable(file.path.name, file.reason) for file in list_unreadable(home)]},
        gr.Column(visible=card is not None), _details(home, card, of_card) if card else {}, card.name if card else "",
        ", ".join(of_card.tags), of_card.low, of_card.high,
    ]   # fmt: skip


def _cards(found: Sequence[AdapterCard], notes: dict[str, AdapterNotes], opened: AdapterCard | None) -> dict[str, Any]:
    """What the panel shows of each adapter, with the opened one marked."""
    shown = [(card, notes.get(card.name, AdapterNotes())) for card in found]
    return {"cards": [{"name": card.name, "picture": cover_url(card, note) or thumbnail_url(card, LARGE),
                       "initial": card.name[0].upper(), "about": _about(card),
                       "chosen": str(card == opened).lower(), "star": note.star,
                       "tags": ", ".join(note.tags)} for card, note in shown]}   # fmt: skip


def _reading(read: int, count: int) -> dict[str, Any]:
    """The list while files are read for the first time."""
    return {"cards": [], "empty": words.reading(read, count), "is_first": False, "words": [], "unreadable": []}


def _pages(page: int, count: int) -> dict[str, Any]:
    """Where the page is among all."""
    last = max(0, count - 1) // PAGE
    if not last:
        return {"range": ""}
    return {"range": words.shown_range(page * PAGE + 1, min(count, (page + 1) * PAGE), count),
            "before": str(page - 1) if page else "", "after": str(page + 1) if page < last else ""}   # fmt: skip


def _about(card: AdapterCard) -> str:
    return " · ".join(part for part in (card.subject, _kind(card), format_bytes(card.bytes)) if part)


def _kind(card: AdapterCard) -> str:
    return KINDS[card.kind].title if card.kind in KINDS else card.algorithms or card.kind


def _details(home: Home, card: AdapterCard, notes: AdapterNotes) -> dict[str, Any]:
    facts = {
        words.KIND: _kind(card), words.CLASS_WORD: card.subject,
        shared.BASE_MODEL: card.title or family_title(card.family),
        words.TRAINED_ON: words.picture_count(card.pictures), shared.SIZE: format_bytes(card.bytes),
        shared.CREATED: shared.date_and_time(card.created.astimezone()), words.CAPTION_TAGS: _tags(card),
        words.NOTES: " ".join(card.notes), **run_facts(home, card), **measured_facts(home, card),
    }   # fmt: skip
    return {
        "star": str(notes.star).lower(), "create": page_url("create", like=card.name),
        "continue": page_url("create", **{"continue": card.name}) if card.kind in KINDS else "",
        "lineage": _lineage(home, card), "name": card.name, "trigger": card.trigger,
        "picture": cover_url(card, notes) or read_thumbnail(card), "facts": _pairs(facts),
        "recipe": _pairs(_recipe(card)), "studio": page_url("studio", adapter=card.name),
    }   # fmt: skip


def _lineage(home: Home, card: AdapterCard) -> list[dict[str, Any]]:
    """The adapter that this one continues, and those that continue it."""
    parent, children = find_adapter_by_hash(home, card.parent), continued_from(home, card)
    found = [(words.PARENT, [parent.name] if parent else []), (words.CHILDREN, [child.name for child in children])]
    return [{"label": label, "adapters": names[:_MOST_RELATIVES]} for label, names in found if names]


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


def _delete(home: Home, wanted: LibraryFilter, page: int, name: str) -> list[Any]:
    with show_errors():
        trashed = delete_adapter(home, name)
    return [*_show(home, wanted, page, ""), {"name": name}, str(trashed.name)]


def _undo(home: Home, wanted: LibraryFilter, page: int, trashed: str) -> list[Any]:
    with show_errors():
        path = restore_adapter(home, Path(trashed))
    return [*_show(home, wanted, page, path.stem), {}, ""]


def _export(home: Home, engine: Engine, name: str, *choices: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Write the file that the form asks for, offer it, and report how exact it is."""
    form, precision, rank, recipe = choices
    # A folder of its own: two pages may ask for one adapter in two ways at once.
    with show_errors(), TemporaryDirectory(dir=home.state) as folder:
        yield gr.skip(), {"busy": words.WRITING}
        card = find_adapter(home, name)
        limits = LowRankLimits(rank=int(rank)) if rank and form in ("kohya", "diffusers") else EXACT
        path, report = export_adapters([(card, 1.0)], form, Path(folder), precision, limits=limits, recipe=recipe)
        facts, file = _report_facts(report), gr.DownloadButton(value=offer(path), visible=True)
        if form != "native" and card.base and (card.base == EMBEDDED or engine.is_loaded(card.base)):
            yield file, {**facts, "busy": words.COMPARING}
            facts = _with_comparison(facts, engine.compare_export(card.base, card.path, path, suggested_prompt(card)))
        yield file, facts


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
