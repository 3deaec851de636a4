"""A grid as one picture with labels. Apart from ``grid.py``, because only whoever downloads one draws it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from atelier.app.services.grid import Cell, Grid
from atelier.app.store.gallery import find_picture
from atelier.app.store.home import Home, HomeError, explain_write_errors, write_home_file
from atelier.app.text import grid as words

SIDE = 256          # of a cell at most, pixels
_MARGIN, _LINE = 10, 22
_INK, _PAPER, _EMPTY = "#17201B", "#FFFFFF", "#EAECE7"
_FONT = ImageFont.load_default(15)


def labelled_picture(home: Home, grid: Grid) -> Image.Image:
    """All cells on white: the first axis across, the second down, and the third as blocks below each other."""
    across, down, blocks = (*(axis.values for axis in grid.axes), *[("",)] * (3 - len(grid.axes)))
    cells = {cell.values: cell for cell in grid.cells}
    left = _MARGIN + max((_width(text) for text in down), default=0) + _MARGIN
    block_height = _LINE * 2 + len(down) * (SIDE + _MARGIN) + _MARGIN
    size = (left + len(across) * (SIDE + _MARGIN), _LINE + _MARGIN + block_height * len(blocks))
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), _title(grid), fill=_INK, font=_FONT)
    for number, block in enumerate(blocks):
        top = _LINE + _MARGIN + number * block_height
        draw.text((_MARGIN, top), block, fill=_INK, font=_FONT)
        for column, x_value in enumerate(across):
            x = left + column * (SIDE + _MARGIN)
            draw.text((x, top + _LINE), _fitting(x_value), fill=_INK, font=_FONT)
            for row, y_value in enumerate(down):
                y = top + 2 * _LINE + row * (SIDE + _MARGIN)
                draw.text((_MARGIN, y + SIDE // 2), y_value, fill=_INK, font=_FONT)
                values = (x_value, y_value, block)[: len(grid.axes)]
                picture.paste(_cell_picture(home, cells.get(values)), (x, y))
    return picture


def write_labelled_picture(home: Home, grid: Grid) -> Path:
    """Write the labelled picture of a grid, with the grid as JSON inside; returns the file.

    Raises:
        HomeError: it can't be written.
    """
    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_itxt("atelier-grid", json.dumps(asdict(grid), ensure_ascii=False))
    labelled_picture(home, grid).save(buffer, "PNG", pnginfo=chunks)
    path = home.state / "exports" / f"grid-{grid.id}.png"
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_home_file(path, buffer.getvalue())
    return path


def _cell_picture(home: Home, cell: Cell | None) -> Image.Image:
    square = Image.new("RGB", (SIDE, SIDE), _EMPTY)
    try:
        with Image.open(find_picture(home, cell.picture if cell else "").path) as found:
            small = found.convert("RGB")
    except HomeError:
        return square
    scale = SIDE / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))),
                         Image.Resampling.LANCZOS)   # fmt: skip
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square


def _title(grid: Grid) -> str:
    return " × ".join(words.KINDS[axis.kind] + (f" ({axis.adapter})" if axis.adapter else "") for axis in grid.axes)


def _fitting(text: str) -> str:
    """A label cut to the width of a cell."""
    while len(text) > 2 and _width(text) > SIDE:
        text = f"{text[:-2]}…"
    return text


def _width(text: str) -> int:
    return round(_FONT.getlength(text))


def cell_rows(grid: Grid) -> list[tuple[str, str, Sequence[Cell]]]:
    """The rows of a grid as a page shows them: block, label, cells from left to right."""
    across, down, blocks = (*(axis.values for axis in grid.axes), *[("",)] * (3 - len(grid.axes)))
    cells = {cell.values: cell for cell in grid.cells}
    return [(block, label, [cells[(value, label, block)[: len(grid.axes)]] for value in across])
            for block in blocks for label in down]   # fmt: skip
