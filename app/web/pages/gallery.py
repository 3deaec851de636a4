"""Gallery: every picture ever drawn, newest first, each with its settings."""

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
    thumbnail_file,
    trash_picture,
)
from atelier.app.store.home import Home, HomeError
from atelier.app.store.mixes import mix_from_recipe
from atelier.app.text import gallery as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.urls import file_url, page_url

PAGE_SIZE = 60


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the Gallery page: the pictures of ``home`` and the details of one."""
    heading(words.TITLE, words.LEAD)
    undo = panel("undo", {})
    chosen, trashed = gr.Textbox(visible=False), gr.Textbox(visible=False)
    pages = gr.Number(1, visible=False, precision=0)
    with gr.Row(elem_classes="layout layout-detail"):
        with gr.Column(scale=8):
            pictures = panel("gallery-pictures", {})
        with gr.Column(scale=4, elem_classes="surface details-column", visible=False) as details_column:
            details = panel("picture-details", {})
    shown = [pictures, details_column, details, chosen, pages]

    def on_load(request: gr.Request) -> list[Any]:
        """Show the newest pictures, and the one in the page's address."""
        return _show(home, request.query_params.get("picture", ""), 1)

    def on_action(event: gr.EventData, id: str, count: int) -> list[Any]:
        """Open the pressed picture, or show more."""
        action, pressed = action_of(event)
        return _show(home, id if action == "more" else pressed, count + (action == "more"))

    def delete(event: gr.EventData, id: str, count: int) -> list[Any]:
        """Move the opened picture to the trash."""
        return _delete(home, id, count) if action_of(event)[0] == "delete" else [gr.skip()] * 7

    demo.load(on_load, None, shown, **UNQUEUED)
    pictures.action(on_action, [chosen, pages], shown, **UNQUEUED)
    details.action(delete, [chosen, pages], [*shown, undo, trashed], **UNQUEUED)
    undo.action(lambda gone, count: _undo(home, gone, count), [trashed, pages], [*shown, undo, trashed], **UNQUEUED)


def _show(home: Home, chosen: str, pages: int) -> list[Any]:
    """The newest ``pages`` pages of pictures, and the details of one; an unknown id opens none."""
    pictures = gallery_page(home, limit=PAGE_SIZE * pages, with_damaged=True)
    try:
        picture = find_picture(home, chosen, with_damaged=True) if chosen else None
    except HomeError:
        picture = None
    tiles = [{**_tile(home, each), "chosen": str(each == picture).lower()} for each in pictures]
    grid = {"pictures": tiles, "more": len(pictures) == PAGE_SIZE * pages, "empty": not pictures}
    return [grid, gr.Column(visible=picture is not None), _details(picture) if picture else {},
            picture.id if picture else "", pages]   # fmt: skip


def _tile(home: Home, picture: GalleryPicture) -> dict[str, str]:
    try:
        small = None if picture.damaged else thumbnail_file(home, picture.id)
    except HomeError:   # no thumbnail can be written
        small = picture.path
    prompt = str(picture_recipe(picture).get("prompt", ""))
    return {"id": picture.id, "src": file_url(small) if small else "", "prompt": prompt if small else words.DAMAGED}


def _details(picture: GalleryPicture) -> dict[str, Any]:
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
    return {
        "id": picture.id, "src": file_url(picture.path), "prompt": str(recipe.get("prompt", "")),
        "facts": [{"name": name, "value": str(value)} for name, value in facts.items() if str(value)],
        "recipe": recipe_json(recipe),
        "reuse": page_url("fusion" if mix_from_recipe(recipe) else "studio", picture=picture.id),
    }   # fmt: skip


def _adapters(recipe: dict[str, Any]) -> str:
    """Names and strengths; empty where the recipe is not one that Atelier wrote."""
    try:
        return ", ".join(f"{part['name']} {part['strength']:g}" for part in recipe.get("adapters", []))
    except (TypeError, ValueError, KeyError):
        return ""


def _delete(home: Home, id: str, pages: int) -> list[Any]:
    with show_errors():
        trashed = trash_picture(home, id)
    return [*_show(home, "", pages), {"name": words.THE_PICTURE}, trashed.name]


def _undo(home: Home, trashed: str, pages: int) -> list[Any]:
    with show_errors():
        path = restore_picture(home, Path(trashed))
    return [*_show(home, path.stem, pages), {}, ""]
