"""Pictures that drawings started from, kept by the hash of their pixels, so that a recipe can name them.

``gallery/.starts/<sha256>.png``: recipes of any number of pictures name the same file. They stay when pictures are
deleted, which another recipe may need.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from atelier.app.store.home import Home, explain_write_errors, write_home_file
from atelier.training.data.images import PictureError, open_picture
from atelier.training.sampling.start_picture import StartPicture

_HASH = re.compile(r"[0-9a-f]{64}")


def start_recipe(start: StartPicture) -> dict[str, Any]:
    """What a recipe says of it: the hashes of picture and mask, and how much could change."""
    mask = {"mask": pixel_hash(start.mask.convert("L"))} if start.mask is not None else {}
    return {"sha256": pixel_hash(start.picture.convert("RGB")), "strength": start.strength,
            "masked": start.mask is not None, **mask}   # fmt: skip


def pixel_hash(picture: Image.Image) -> str:
    """SHA-256 of a picture's pixels, as they are in memory."""
    return sha256(picture.tobytes()).hexdigest()


def save_start_picture(home: Home, start: StartPicture) -> None:
    """Keep a picture and its mask; those that are here already are left alone.

    Raises:
        HomeError: it can't be written.
    """
    pictures = [start.picture.convert("RGB"), *([start.mask.convert("L")] if start.mask is not None else [])]
    for picture in pictures:
        path = _path(home, pixel_hash(picture))
        if path.exists():
            continue
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        with explain_write_errors(path.parent):
            path.parent.mkdir(mode=0o700, exist_ok=True)
        write_home_file(path, buffer.getvalue())


def find_start_picture(home: Home, recipe: Mapping[str, Any]) -> StartPicture | None:
    """What :func:`start_recipe` describes; None where a file of it is gone, damaged or another.

    Raises:
        KeyError, TypeError, ValueError: the recipe is damaged.
    """
    picture = _load(home, str(recipe["sha256"]), "RGB")
    mask = _load(home, str(recipe.get("mask", "")), "L") if recipe.get("masked") else None
    if picture is None or (recipe.get("masked") and mask is None):
        return None
    return StartPicture(picture, float(recipe["strength"]), mask)


def _load(home: Home, hash: str, mode: str) -> Image.Image | None:
    path = _path(home, hash)
    if not _HASH.fullmatch(hash) or not path.is_file():
        return None
    try:
        picture = open_picture(path).convert(mode)
    except PictureError:
        return None
    return picture if pixel_hash(picture) == hash else None


def _path(home: Home, hash: str) -> Path:
    return home.gallery / ".starts" / f"{hash}.png"
