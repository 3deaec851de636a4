"""Gallery: every picture ever drawn, newest first, each with its settings; searched, starred, and put on boards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from atelier.adapters.core.parse import parse_json
from atelier.app.services.add_pictures import add_pictures
from atelier.app.services.draw import picture_recipe, recipe_json
from atelier.app.services.gallery_zip import zip_pictures
from atelier.app.store.adapter_notes import save_notes
from atelier.app.store.gallery import GalleryPicture, find_picture, restore_picture, thumbnail_file, trash_picture
from atelier.app.store.gallery_index import (
    IndexedPicture,
    PictureQuery,
    adapters_in_gallery,
    count_pictures,
    describe_in_background,
    describe_pictures,
    recipe_adapters,
    search_pictures,
    update_index,
)
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import find_adapter
from atelier.app.store.mixes import mix_from_recipe
from atelier.app.store.picture_marks import put_on_board, read_marks, set_stars, take_off_board
from atelier.app.text import gallery as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, inform, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.uploads import Message, newest_messages, offer, upload_queue, uploaded_files
from atelier.app.web.components.urls import file_url, page_url
from atelier.training.measures.picture_features import COLOURS

PAGE_SIZE = 60
_KEYS = ("text", "adapter", "board", "since", "until", "starred", "colour", "similar")   # of a query, in _query's order
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the Gallery page: the pictures of ``home``, a search, and the details of one in a dialog."""
    heading(words.TITLE, words.LEAD)
    filters = _filters()
    events = _Events(home)

    def more(asked: Any) -> list[dict[str, Any]]:   # a plain function: Gradio marks it
        """The next page of the list."""
        return events.more(asked)

    with gr.Row(elem_id="selection", elem_classes="actions"):
        board_name = gr.Textbox(label=words.NEW_BOARD, show_label=False, placeholder=words.NEW_BOARD, max_length=64,
                                elem_id="board-name", scale=0, min_width=180)   # fmt: skip
        selection = panel("gallery-selection", {})
    undo = panel("undo", {})
    queue = upload_queue("add-to-gallery")
    with gr.Accordion(words.ADD, open=False, elem_id="add-elsewhere", elem_classes="folded") as folded:
        drop = gr.File(file_count="multiple", file_types=["image"], label=words.ADD_DROP, elem_id="add-to-gallery",
                       elem_classes="drop-zone", height=120)   # fmt: skip
        told = panel("import-results", {}, elem_id="added-pictures")
    with gr.Column(visible=False, elem_id="gallery-comparison") as compared:
        pair = gr.ImageSlider(label=words.COMPARED, interactive=False, type="filepath", elem_id="compared-pictures")
        close = gr.Button(words.STOP_COMPARING, elem_id="stop-comparing")
    pictures = panel("gallery-pictures", {}, server_functions=[more])
    details = panel("picture-details", {})
    packed = gr.DownloadButton(shared.DOWNLOAD, visible=False, elem_id="packed-pictures")
    trashed = gr.State(())

    show = [pictures, *filters[1:3]]
    loaded = demo.load(events.on_load, None, [*show, details], **UNQUEUED)
    loaded.then(events.read_the_rest, filters, pictures, **_QUIET)
    gr.on([each.change for each in filters], events.search, filters, pictures, trigger_mode="always_last", **UNQUEUED)
    for pressed in (pictures, details):
        pressed.action(events.act, filters, [pictures, details, undo, trashed], **UNQUEUED)
    chosen = [pictures, undo, trashed, filters[2], compared, pair, packed]
    acted = selection.action(events.act_on_selection, [board_name, *filters], chosen, **_QUIET)
    acted.success(None, None, None, js=press_when_shown("packed-pictures", tries=8))
    added, options = [drop, folded, told, pictures], {**_QUIET, "trigger_mode": "multiple"}
    so_far = gr.State([])
    queue.uploaded(events.add_queued, [so_far, *filters], added, **options)
    # The field itself hears only of what comes before its queue is there.
    drop.upload(lambda files, *given: events.add(files or [], *given), [drop, so_far, *filters], added, **options)
    undo.action(events.undo, [trashed, *filters], [pictures, undo, trashed], **UNQUEUED)
    close.click(lambda: gr.Column(visible=False), None, compared, **UNQUEUED)


def _filters() -> list[Any]:
    """The search, in the order of :func:`_query`'s values."""
    with gr.Row(elem_classes="gallery-filters"):
        text = gr.Textbox(label=words.SEARCH, placeholder=words.SEARCH_HINT, max_length=200, lines=1, max_lines=1,
                          elem_id="search-pictures", scale=3, min_width=240)   # fmt: skip
        adapter = gr.Dropdown([(words.ANY, "")], value="", label=words.ADAPTER, elem_id="filter-adapter", scale=2)
        board = gr.Dropdown([(words.ANY, "")], value="", label=words.BOARD, elem_id="filter-board", scale=2)
        since, until = (gr.DateTime(label=label, include_time=False, type="string", elem_id=id, scale=1, min_width=150)
                        for label, id in ((words.SINCE, "since"), (words.UNTIL, "until")))   # fmt: skip
        colour = gr.Dropdown([(words.ANY, ""), *((name, name) for name in COLOURS)], value="", label=words.COLOUR,
                             elem_id="filter-colour", scale=1, min_width=120)   # fmt: skip
        starred = gr.Checkbox(False, label=words.STARRED, elem_id="only-starred", scale=0, min_width=120)
    return [text, adapter, board, since, until, starred, colour]


def _query(values: Sequence[Any]) -> PictureQuery:
    """The search that the controls say; anything may come from a browser."""
    text, adapter, board, since, until, colour, similar = (
        value if isinstance(value, str) else "" for value in (*values[:5], *values[6:], "", "")[:7])
    return PictureQuery(text=text, adapter=adapter, board=board, since=since[:10], until=until[:10],
                        starred=values[5] is True, colour=colour, similar=similar)   # fmt: skip


@dataclass(frozen=True, slots=True)
class _Events:
    """Event handlers of the page; their ``values`` are those of the filters."""

    home: Home

    def on_load(self, request: gr.Request) -> list[Any]:
        """Show the newest pictures, and open the one in the page's address."""
        left, id = self._update(), request.query_params.get("picture", "")
        boards, adapters = sorted(read_marks(self.home).boards), adapters_in_gallery(self.home)
        return [self._grid(PictureQuery(), left), _choices(adapters), _choices(boards), self._details(id)]

    def read_the_rest(self, *values: Any) -> Iterator[Any]:
        """Read pictures that the index does not know yet, as after copying a home, a second at a time."""
        yield gr.skip()
        while left := self._update():
            yield self._grid(_query(values), left)
        describe_in_background(self.home)

    def search(self, *values: Any) -> dict[str, Any]:
        """Show what fits the filters."""
        return self._grid(_query(values), 0)

    def more(self, asked: Any) -> list[dict[str, Any]]:
        """The next page of a search, for the page's own script: ``[query as JSON, id of the last picture]``."""
        text, before = (str(each) for each in asked) if isinstance(asked, list) and len(asked) == 2 else ("", "")
        try:
            values = parse_json(text)
            query = _query([values.get(key) for key in _KEYS])
        except (ValueError, AttributeError):
            query = PictureQuery()
        return [self._tile(each) for each in search_pictures(self.home, query, before, PAGE_SIZE)]

    def act(self, event: gr.EventData, *values: Any) -> list[Any]:
        """A pressed button of a tile or of the opened picture."""
        action, id = action_of(event)
        skip = gr.skip()
        with show_errors():
            match action:
                case "open":
                    return [skip, self._details(id), skip, skip]
                case "similar":
                    return [self._similar(id, values), {}, skip, skip]
                case "all":
                    return [self._grid(_query(values), 0), skip, skip, skip]
                case "cover":
                    self._set_cover(*id.split(" ", 1))
                    return [skip, skip, skip, skip]
                case "star":
                    set_stars(self.home, [id], id not in read_marks(self.home).stars)
                    self._update()
                    return [skip, self._details(id), skip, skip]
                case "delete":
                    grid, said, trashed = self._delete([id], values)
                    return [grid, {}, said, trashed]
                case _:
                    return [skip, {}, skip, skip]

    def act_on_selection(self, event: gr.EventData, board: str, *values: Any) -> list[Any]:
        """A pressed button for all selected pictures."""
        action, text = action_of(event)
        ids, skip = text.split(), gr.skip()
        result = [skip, skip, skip, skip, skip, skip, gr.DownloadButton(visible=False)]
        with show_errors():
            if not ids:
                raise ValueError(words.CHOOSE_SOME)
            match action:
                case "zip":
                    path = zip_pictures(self.home, ids, self.home.state / "exports" / "zip")
                    result[6] = gr.DownloadButton(value=offer(path), visible=True)
                    path.unlink()   # the offered name is left
                case "compare":
                    if len(ids) != 2:
                        raise ValueError(words.CHOOSE_TWO)
                    files = tuple(offer(find_picture(self.home, id).path) for id in ids)
                    result[4:6] = [gr.Column(visible=True), files]
                case "delete":
                    result[:3] = self._delete(ids, values)
                case "star":
                    set_stars(self.home, ids, True)
                case "board" | "off-board":
                    on_board = _query(values).board
                    put_on_board(self.home, board, ids) if action == "board" else take_off_board(
                        self.home, on_board, ids)   # fmt: skip
                    result[3] = _choices(sorted(read_marks(self.home).boards))
            if action in ("star", "board", "off-board"):
                result[0] = self._grid(_query(values), self._update())
        return result

    def undo(self, trashed: Sequence[str], *values: Any) -> list[Any]:
        """Put back what was deleted last."""
        with show_errors():
            for name in trashed:
                restore_picture(self.home, Path(name))
        return [self._grid(_query(values), self._update()), {}, ()]

    def add_queued(self, event: gr.EventData, so_far: list[Message], *values: Any) -> list[Any]:
        """Add the files of a drop."""
        with show_errors():
            files = uploaded_files(event)
        return self.add(files, so_far, *values)

    def add(self, files: Sequence[str | Path], so_far: list[Message], *values: Any) -> list[Any]:
        """Add files, say what became of each, and show the gallery with them."""
        for one in add_pictures(self.home, [Path(file) for file in files]):
            text = words.added(one.path.name, " ".join(one.notes)) if one.id else one.reason
            so_far.append({"text": text, "ok": "yes" if one.id else ""})
        return [None, gr.Accordion(open=True), newest_messages(so_far), self._grid(_query(values), self._update())]

    def _delete(self, ids: Sequence[str], values: Sequence[Any]) -> list[Any]:
        trashed = tuple(trash_picture(self.home, id).name for id in dict.fromkeys(ids))
        return [self._grid(_query(values), self._update()), {"name": words.pictures(len(trashed))}, trashed]

    def _similar(self, id: str, values: Sequence[Any]) -> dict[str, Any]:
        """The pictures that look most like one, among those that the filters let through."""
        find_picture(self.home, id)
        query = replace(_query(values), similar=id)
        return self._grid(query, describe_pictures(self.home))

    def _set_cover(self, id: str, adapter: str = "") -> None:
        """Show an adapter in the library by a picture that was drawn with it."""
        card = find_adapter(self.home, adapter)
        save_notes(self.home, card.name, cover=find_picture(self.home, id).id)
        inform(words.cover_set(card.name))

    def _update(self) -> int:
        with show_errors():
            return update_index(self.home)

    def _grid(self, query: PictureQuery, still_to_read: int) -> dict[str, Any]:
        """What the panel's script starts a list from."""
        number = count_pictures(self.home, query)
        return {"query": json.dumps(asdict(query)), "count": words.count(number, still_to_read),
                "empty": not number and query == PictureQuery(), "no_match": not number and query != PictureQuery(),
                "similar": bool(query.similar), "number": number, "version": time.monotonic_ns(),
                "first": [self._tile(each) for each in search_pictures(self.home, query, "", PAGE_SIZE)]}   # fmt: skip

    def _tile(self, picture: IndexedPicture) -> dict[str, Any]:
        return {"id": picture.id, "src": self._thumbnail(picture), "starred": picture.starred,
                "prompt": words.DAMAGED if picture.damaged else picture.prompt}   # fmt: skip

    def _thumbnail(self, picture: IndexedPicture) -> str:
        try:
            small = None if picture.damaged else thumbnail_file(self.home, picture.id)
        except HomeError:   # gone meanwhile, or no thumbnail can be written
            small = self.home.gallery / f"{picture.id}.png"
        return file_url(small) if small else ""

    def _details(self, id: str) -> dict[str, Any]:
        try:
            picture = find_picture(self.home, id, with_damaged=True) if id else None
        except HomeError:
            picture = None
        return _details(picture, starred=id in read_marks(self.home).stars) if picture else {}


def _choices(names: Sequence[str]) -> Any:
    return gr.update(choices=[(words.ANY, ""), *((name, name) for name in names)])


def _details(picture: GalleryPicture, *, starred: bool) -> dict[str, Any]:
    if picture.damaged:
        return {"id": picture.id, "damaged": words.damaged(picture.path.name)}
    recipe = picture_recipe(picture)
    facts = {
        words.ADAPTERS: _adapters(recipe), words.NEGATIVE: recipe.get("negative", ""),
        shared.SEED: recipe.get("seed", ""), shared.STEPS: recipe.get("steps", ""),
        words.GUIDANCE: recipe.get("guidance", ""), words.SAMPLER: recipe.get("sampler", ""),
        shared.SIZE: f"{recipe.get('width', '?')} × {recipe.get('height', '?')}",
        shared.BASE_MODEL: recipe.get("base", ""), shared.CREATED: shared.date_and_time(picture.created.astimezone()),
    }   # fmt: skip
    page = "mix" if mix_from_recipe(recipe) else "studio"
    return {
        "id": picture.id, "src": file_url(picture.path), "prompt": str(recipe.get("prompt", "")),
        "facts": [{"name": name, "value": str(value)} for name, value in facts.items() if str(value)],
        "recipe": recipe_json(recipe), "reuse": page_url(page, picture=picture.id), "starred": str(starred).lower(),
        "star": words.UNSTAR if starred else words.STAR, "grid": page_url("grid", picture=picture.id),
        "covers": [{"id": f"{picture.id} {name}", "text": words.use_as_cover(name)}
                   for name in recipe_adapters(recipe)],
        **{f"only_{part}": page_url("studio", picture=picture.id, only=part) for part in ("prompt", "seed")},
    }   # fmt: skip


def _adapters(recipe: dict[str, Any]) -> str:
    """Names and strengths; empty where the recipe is not one that Atelier wrote."""
    try:
        return ", ".join(f"{part['name']} {part['strength']:g}" for part in recipe.get("adapters", []))
    except (TypeError, ValueError, KeyError):
        return ""
