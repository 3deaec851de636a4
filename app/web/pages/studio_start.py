"""The part of the Studio where a drawing starts from a picture: all of it, or what is painted over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import show_errors
from atelier.training.data.images import open_picture
from atelier.training.sampling.start_picture import StartPicture

CHANGE = 0.6   # how much may change at first
# Seen on light and on dark pictures; only where it is counts.
BRUSH_COLOUR = "#d6249f"
_BRUSH = gr.Brush(default_size=24, colors=[BRUSH_COLOUR], color_mode="fixed")


def place_start() -> tuple[gr.ImageEditor, gr.Slider]:
    """Place the editor and how much may change: what :func:`start_picture` takes."""
    with gr.Accordion(words.START, open=False, elem_id="start-from"):
        gr.Markdown(words.START_HINT, elem_classes="hint")
        editor = gr.ImageEditor(
            type="filepath", image_mode="RGBA", format="png", layers=False, transforms=(), brush=_BRUSH,
            eraser=gr.Eraser(default_size=24), sources=("upload", "clipboard"), show_label=False, label=words.START,
            height=420, elem_id="start-picture",
        )   # fmt: skip
        change = gr.Slider(0.05, 1, CHANGE, step=0.05, label=words.CHANGE, info=words.CHANGE_HINT, elem_id="change")
    return editor, change


def start_values(start: StartPicture | None) -> list[Any]:
    """Values of the editor, of how much may change, and of what a moving slider starts from."""
    return [_editor_value(start), start.strength if start else CHANGE, start]


def _editor_value(start: StartPicture | None) -> dict[str, Any] | None:
    """The picture, with its mask as paint."""
    if start is None:
        return None
    layers = []
    if start.mask is not None:
        paint = Image.new("RGBA", start.picture.size, BRUSH_COLOUR)
        paint.putalpha(start.mask.convert("L").point([0] * 128 + [255] * 128))
        layers.append(paint)
    return {"background": start.picture.convert("RGB"), "layers": layers, "composite": None}


def start_picture(edited: dict[str, Any] | None, change: float) -> StartPicture | None:
    """What the editor holds; None where it is empty. Paint of any colour is the mask.

    Raises:
        gr.Error: the picture is damaged, or too large.
    """
    background = (edited or {}).get("background")
    if not edited or not background:
        return None
    with show_errors():
        picture, mask = open_picture(Path(background)), None
    for layer in filter(None, edited.get("layers") or ()):
        with Image.open(layer) as image:
            painted = image.convert("RGBA").getchannel("A").point([0] + [255] * 255)
        mask = painted if mask is None else ImageChops.lighter(mask, painted)
    if mask is None or mask.getbbox() is None:
        return StartPicture(picture, change)
    return StartPicture(picture, change, mask.resize(picture.size, Image.Resampling.NEAREST))
