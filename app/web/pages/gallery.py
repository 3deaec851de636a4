"""Gallery: every picture ever drawn, newest first, each with its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from atelier.app.services.draw import picture_recipe, recipe_json
from atelier.app.store.gallery import (
    GalleryPicture,
    find_picture,
    gallery_page,
    restore_picture,
    thumbnail,
    trash_picture,
)
from atelier.app.store.home import Home, HomeError
from atelier.app.store.mixes import mix_from_recipe
from atelier.app.text import gallery as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import POLL, heading, plainly
from atelier.app.web.components.panel import acted, panel
from atelier.app.web.components.urls import address, file_address

PAGE = 60


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the page."""
    heading(words.TITLE, words.LEAD)
    undo = panel("undo", {})
    chosen, trashed = gr.Textbox(visible=False), gr.Textbox(visible=False)
    pages = gr.Number(1, visible=False, precision=0)
    with gr.Row(elem_classes="bench bench-detail"):
        with gr.Column(scale=8):
            wall = panel("wall", {})
        with gr.Column(scale=4, elem_classes="sheet side", visible=False) as side:
            detail = panel("picture", {})
    shown = [wall, side, detail, chosen, pages]

    def opened(request: gr.Request) -> list[Any]:
        return _show(home, request.query_params.get("picture", ""), 1)

    def act(event: gr.EventData, id: str, count: int) -> list[Any]:
        what, picked = acted(event)
        return _show(home, id if what == "more" else picked, count + (what == "more"))

    def delete(event: gr.EventData, id: str, count: int) -> list[Any]:
        return _delete(home, id, count) if acted(event)[0] == "delete" else [gr.skip()] * 7

    demo.load(opened, None, shown, **POLL)
    wall.act(act, [chosen, pages], shown, **POLL)
    detail.act(delete, [chosen, pages], [*shown, undo, trashed], **POLL)
    undo.act(lambda gone, count: _undo(home, gone, count), [trashed, pages], [*shown, undo, trashed], **POLL)


def _show(home: Home, chosen: str, pages: int) -> list[Any]:
    """The newest ``pages`` pages of the wall, and one picture opened; an id that is no picture opens none."""
    pictures = gallery_page(home, limit=PAGE * pages)
    try:
        picture = find_picture(home, chosen) if chosen else None
    except HomeError:
        picture = None
    hung = [{**_tile(home, each), "chosen": str(each == picture).lower()} for each in pictures]
    wall = {"pictures": hung, "more": len(pictures) == PAGE * pages, "none": not pictures}
    return [wall, gr.Column(visible=picture is not None), _detail(picture) if picture else {},
            picture.id if picture else "", pages]   # fmt: skip


def _tile(home: Home, picture: GalleryPicture) -> dict[str, str]:
    small = thumbnail(home, picture.id)
    said = picture_recipe(picture).get("prompt", "")
    return {"id": picture.id, "src": file_address(small) if small else "", "prompt": said}


def _detail(picture: GalleryPicture) -> dict[str, Any]:
    recipe = picture_recipe(picture)
    adapters = ", ".join(f"{part['name']} {part['strength']:g}" for part in recipe.get("adapters", []))
    facts = {
        words.ADAPTERS: adapters, words.NEGATIVE: recipe.get("negative", ""), shared.SEED: recipe.get("seed", ""),
        shared.STEPS: recipe.get("steps", ""), words.GUIDANCE: recipe.get("guidance", ""),
        words.SAMPLER: recipe.get("sampler", ""),
        shared.SIZE: f"{recipe.get('width', '?')} × {recipe.get('height', '?')}",
        shared.BASE_MODEL: recipe.get("base", ""), shared.CREATED: shared.date_and_time(picture.created.astimezone()),
    }   # fmt: skip
    return {
        "id": picture.id, "src": file_address(picture.path), "prompt": recipe.get("prompt", ""),
        "facts": [{"name": name, "value": str(value)} for name, value in facts.items() if str(value)],
        "recipe": recipe_json(recipe),
        "again": address("fusion" if mix_from_recipe(recipe) else "studio", picture=picture.id),
    }   # fmt: skip


def _delete(home: Home, id: str, pages: int) -> list[Any]:
    with plainly():
        trashed = trash_picture(home, id)
    return [*_show(home, "", pages), {"name": words.THE_PICTURE}, trashed.name]


def _undo(home: Home, trashed: str, pages: int) -> list[Any]:
    with plainly():
        path = restore_picture(home, Path(trashed))
    return [*_show(home, path.stem, pages), {}, ""]
