"""The pictures of the Studio: those being drawn, those that are finished, and comparing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from atelier.app.services.draw import ALONE, check_job, draw
from atelier.app.services.draw_again import job_from_picture
from atelier.app.services.engine import Engine
from atelier.app.store.gallery import GalleryPicture, find_picture, read_recipe
from atelier.app.store.home import Home
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import show_errors
from atelier.app.web.components.panel import action_of
from atelier.app.web.components.uploads import offer
from atelier.app.web.components.urls import file_url, page_url
from atelier.app.web.pages.studio_start import CHANGE, start_picture
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.sample import DrawRequest

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}


def result_grid(pictures: Sequence[GalleryPicture]) -> dict[str, Any]:
    """The panel's value for finished pictures."""
    recipes = [(picture, read_recipe(picture.path) or {}) for picture in pictures]
    shown = [{"id": picture.id, "src": file_url(picture.path), "seed": recipe.get("seed", ""),
              "prompt": recipe.get("prompt", ""), "grid": page_url("grid", picture=picture.id)}
             for picture, recipe in recipes]   # fmt: skip
    return {**_grid(shown), "adapted": any(recipe.get("adapters") for _, recipe in recipes)}


def preview_grid(small: Sequence[Image.Image], request: DrawRequest) -> dict[str, Any]:
    """The panel's value for unfinished pictures, in the places of the finished ones."""
    return _grid([{"id": "", "src": thumbnail(picture), "seed": request.seed + i, "prompt": words.UNFINISHED}
                  for i, picture in enumerate(small)])   # fmt: skip


def _grid(shown: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pictures": shown, "columns": 1 if len(shown) <= 1 else 2 if len(shown) <= 4 else 3}


def busy(done: int, of: int, notices: Sequence[str] = ()) -> dict[str, Any]:
    """The progress panel's value while something is drawn, with what is to be said about it."""
    label = " · ".join([words.progress(done, of), *notices])
    return {"busy": "true", "percent": 100 * done // of if of else 0, "label": label}


def idle() -> dict[str, Any]:
    """The progress panel's value when nothing is drawn."""
    return notice_panel("")


def notice_panel(text: str) -> dict[str, Any]:
    """The progress panel's value when nothing is drawn and something is to be said."""
    return {"busy": "false", "percent": 0, "label": text}


class ComparisonParts(NamedTuple):
    """What shows a pinned picture against the newest."""

    row: gr.Column
    slider: gr.ImageSlider
    unpin: gr.Button
    pinned: gr.Textbox   # id of the pinned picture


def place_comparison() -> ComparisonParts:
    """Place the parts, hidden until a picture is pinned."""
    with gr.Column(visible=False, elem_id="comparison") as row:
        slider = gr.ImageSlider(label=words.COMPARED, interactive=False, type="filepath", buttons=["fullscreen"],
                                elem_id="pinned-against-newest")   # fmt: skip
        unpin = gr.Button(words.UNPIN, elem_id="unpin")
    return ComparisonParts(row, slider, unpin, gr.Textbox(visible=False))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparing pictures: with a pinned one, or with the same drawn without adapters."""

    home: Home
    engine: Engine
    parts: ComparisonParts

    def listen(self, results: Any, drawn: gr.State, editor: gr.ImageEditor, started: gr.State) -> None:
        """Connect the buttons below the pictures of ``results``.

        Args:
            results: the panel.
            drawn: has the ids of its pictures.
            editor: of the picture that a drawing starts from.
            started: what a moving slider starts from.
        """
        row, slider, unpin, pinned = self.parts
        results.action(self._act, [drawn, pinned], [results, pinned, row, slider, editor, started],
                       **_QUIET)   # fmt: skip
        drawn.change(self._show, [drawn, pinned], [row, slider], **_QUIET)
        unpin.click(lambda: ["", gr.Column(visible=False)], None, [pinned, row], **_QUIET)

    def _act(self, event: gr.EventData, drawn: Any, pinned: str) -> list[Any]:
        action, id = action_of(event)
        skip = gr.skip()
        with show_errors():
            match action:
                case "without":
                    return [self._with_bare_pictures(drawn.ids), *[skip] * 5]
                case "pin":
                    return [skip, id, *self._show(drawn, id), skip, skip]
                case "start":
                    editor = {"background": offer(find_picture(self.home, id).path), "layers": [], "composite": None}
                    return [*[skip] * 4, editor, start_picture(editor, CHANGE)]
                case _:
                    return [skip, pinned, *[skip] * 4]

    def _show(self, drawn: Any, pinned: str) -> list[Any]:
        """The pinned picture against the newest one, where both are there."""
        if not pinned or not drawn.ids:
            return [gr.Column(visible=False), gr.skip()]
        with show_errors():
            pair = [offer(find_picture(self.home, id).path) for id in (pinned, drawn.ids[0])]
        return [gr.Column(visible=True), tuple(pair)]

    def _with_bare_pictures(self, ids: Sequence[str]) -> dict[str, Any]:
        """The finished pictures, and each as it is without adapters: drawn for the page alone."""
        grid = result_grid([find_picture(self.home, id) for id in ids])
        for shown, id in zip(grid["pictures"], ids, strict=True):
            job, _ = job_from_picture(self.home, id)
            bare = replace(job, adapters=(), method="", place=ALONE)
            [(picture, _)] = draw(self.engine, check_job(self.home, bare))
            shown["without"] = thumbnail(picture)
        return grid
