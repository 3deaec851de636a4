"""Preview pictures in the headers of adapter files: anybody's, so checked before a page or a decoder gets them."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from pathlib import Path

from PIL import Image

from atelier.app.store.home import Home, explain_write_errors, write_home_file

MAX_PIXELS = 4_000_000
SMALL, LARGE = 96, 256   # pixels: of pictures in rows and on cards, for screens of high density
FORMATS = ("PNG", "JPEG", "WEBP")   # what pages show; pictures to train on may be of more
# Only a small picture made of plain base64 may reach a page.
_ADDRESS = re.compile(r"data:image/(?:jpeg|png|webp);base64,([A-Za-z0-9+/=]{1,400000})")


def is_showable(address: str) -> bool:
    """Whether a page may show a ``data:`` address: a small file, and of no more pixels than a browser bears."""
    found = _ADDRESS.fullmatch(address)
    return bool(found) and _pixels(found[1]) <= MAX_PIXELS


def preview_png(address: str) -> bytes:
    """The picture of a ``data:`` address as a PNG file, without anything but its pixels; empty if it can't be used.

    What it is, its content decides. Other formats have parsers that nobody needs here and that have been attacked;
    one of them starts Ghostscript.
    """
    found = _ADDRESS.fullmatch(address)
    if not found or not 0 < _pixels(found[1]) <= MAX_PIXELS:
        return b""
    try:
        with Image.open(io.BytesIO(b64decode(found[1])), formats=FORMATS) as image:
            small = image.convert("RGB")
    except Exception:   # a decoder fed with a hostile file may raise anything
        return b""
    small.info = {}
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail_path(home: Home, name: str, side: int) -> Path:
    """The file for the small picture of a name, at most ``side`` pixels wide and high."""
    return home.thumbnails / f"{name}-{side}.webp"


def thumbnail_of_preview(home: Home, address: str, name: str, side: int) -> Path | None:
    """A small WebP file of a ``data:`` address, under a name, written once; None if it can't be used.

    Raises:
        HomeError: it can't be written.
    """
    path = thumbnail_path(home, name, side)
    if path.is_file():
        return path
    whole = preview_png(address)
    if not whole:
        return None
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(whole), formats=["PNG"]) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side))
    small.save(buffer, "WEBP", quality=80)
    with explain_write_errors(path.parent):
        path.parent.mkdir(mode=0o700, exist_ok=True)
    write_home_file(path, buffer.getvalue())
    return path


def _pixels(text: str) -> int:
    """Number of pixels by the picture's header, nothing decoded; 0 if it is no picture of ours."""
    try:
        with Image.open(io.BytesIO(b64decode(text)), formats=FORMATS) as image:
            return image.width * image.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return MAX_PIXELS + 1
    except Exception:   # as above
        return 0
