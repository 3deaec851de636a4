"""The gallery: drawn pictures, each a PNG with its recipe inside."""

from __future__ import annotations

import io
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from atelier.adapters.core.parse import parse_json
from atelier.app.store.a1111_parameters import parameters_text
from atelier.app.store.foreign_hashes import hash_elsewhere
from atelier.app.store.home import Home, HomeError, explain_write_errors, time_id, time_of_id, write_home_file
from atelier.app.store.library import AdapterCard, adapter_hash
from atelier.app.store.picture_metadata import NamedAdapter
from atelier.app.store.trash import move_to_trash, original_name, trash_folder
from atelier.training.config.assets import DISTRIBUTION
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.samplers import SAMPLERS

SCHEMA = 1
LATER_SETTINGS = ("schedule", "prompt_syntax", "clip_skip", "guidance_rescale", "upscale", "upscaler", "upscale_steps",
                  "upscale_strength")   # fmt: skip
"""Settings of a drawing that recipes hold only where they are not the usual ones."""
THUMBNAIL_SIDE = 256   # pixels
_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{6}")
# What Pillow raises for damaged and for absurdly large files.
_DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)
_SIGNATURE, _END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True, slots=True)
class GalleryPicture:
    """A picture in the gallery; its recipe is in the file (:func:`read_recipe`)."""

    id: str
    path: Path
    created: datetime   # UTC
    damaged: bool = False


def make_recipe(
    request: DrawRequest, index: int, base: str, family: str, adapters: Sequence[tuple[AdapterCard, float]]
) -> dict[str, Any]:
    """Make the recipe of picture ``index`` of a request: everything it takes to draw it again.

    Args:
        request: the request.
        index: which of its pictures, from 0.
        base: the base model, as it was given.
        family: the base model's family.
        adapters: the adapters and their strengths.
    """
    unwanted = {"unwanted": request.unwanted, "unwanted_strength": request.unwanted_strength}
    usual, given = DrawRequest().to_dict(), request.to_dict()
    # The syntax is always said: recipes older than it are read plainly.
    later = {name: given[name] for name in LATER_SETTINGS if given[name] != usual[name] or name == "prompt_syntax"}
    if request.upscale > 1:
        later |= {"first_width": request.width, "first_height": request.height}
    return {
        "prompt": request.prompt, "negative": request.negative, **(unwanted if request.unwanted else {}),
        "seed": request.seed + index,
        "steps": request.steps, "guidance": request.guidance, "sampler": request.with_sampler().sampler,
        **later,
        "base": base, "family": family,
        "adapters": [
            {"name": card.name, "sha256": adapter_hash(card), "kind": card.kind, "strength": strength}
            | ({"elsewhere": elsewhere} if (elsewhere := hash_elsewhere(card)) else {})
            for card, strength in adapters
        ],
    }   # fmt: skip


def encode_picture(image: Image.Image, recipe: Mapping[str, Any]) -> bytes:
    """Make a PNG with the recipe inside: as JSON under ``atelier``, and in A1111's format under ``parameters``.

    The size, the time and the version of Atelier are added to the recipe.
    """
    whole = {
        "schema": SCHEMA, "version": _version(), **recipe, "width": image.width, "height": image.height,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }   # fmt: skip
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("atelier", json.dumps(whole, ensure_ascii=False))
    chunks.add_text("parameters", _parameters(whole))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def save_picture(home: Home, image: Image.Image, recipe: Mapping[str, Any]) -> Path:
    """Add a picture to the gallery; returns its file.

    Raises:
        HomeError: it can't be written; the gallery is then unchanged.
    """
    path = home.gallery / f"{picture_id()}.png"
    write_home_file(path, encode_picture(image, recipe))
    return path


def picture_id() -> str:
    """Make a new id: ids sort by time, and those of the same microsecond differ."""
    return f"{time_id()}-{secrets.token_hex(3)}"


def is_picture_id(text: str) -> bool:
    """Whether a text is an id that :func:`picture_id` could have made."""
    return _ID.fullmatch(text) is not None


def keep_picture_file(home: Home, path: Path) -> Path:
    """Add a file of Atelier's own to the gallery, byte for byte; returns where it is.

    It keeps the id in its name where that is free: then it stands where it stood in time.

    Raises:
        HomeError: it can't be written; the gallery is then unchanged.
    """
    id = path.stem if is_picture_id(path.stem) and not (home.gallery / path.name).exists() else picture_id()
    kept = home.gallery / f"{id}.png"
    write_home_file(kept, path.read_bytes())
    return kept


def read_recipe(path: Path) -> dict[str, Any] | None:
    """Read the recipe out of a PNG; None when it has none or is damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            recipe = parse_json(image.info.get("atelier", ""))
    except _DAMAGE:
        return None
    return recipe if isinstance(recipe, dict) else None


def gallery_page(
    home: Home, before: str | None = None, limit: int = 60, *, with_damaged: bool = False
) -> list[GalleryPicture]:
    """One page of the gallery, newest first: the pictures older than the id ``before``.

    Only the files of this page are opened; damaged ones are skipped unless they are asked for. A page shorter than
    ``limit`` is the last.
    """
    page: list[GalleryPicture] = []
    for id in sorted((path.stem for path in home.gallery.glob("*.png")), reverse=True):
        if len(page) == limit:
            break
        if before is None or id < before:
            picture = _picture(home, id)
            if picture and (with_damaged or not picture.damaged):
                page.append(picture)
    return page


def find_picture(home: Home, id: str, *, with_damaged: bool = False) -> GalleryPicture:
    """Find a picture by its id; a damaged one only where it is asked for.

    Raises:
        HomeError: there is none.
    """
    picture = _picture(home, id)
    if picture is None or picture.damaged > with_damaged:
        raise HomeError("This picture is no longer in the gallery.")
    return picture


def _picture(home: Home, id: str) -> GalleryPicture | None:
    created, path = time_of_id(id), home.gallery / f"{id}.png"
    # An id may come from a browser: only what looks like one becomes a path.
    if not created or not _ID.fullmatch(id) or not path.is_file():
        return None
    return GalleryPicture(id, path, created, damaged=not _is_complete_png(path))


def trash_picture(home: Home, id: str) -> Path:
    """Move a picture to the trash; returns its path there.

    Raises:
        HomeError: there is no such picture, or it can't be moved.
    """
    trashed = move_to_trash(home, find_picture(home, id, with_damaged=True).path)
    _thumbnail_path(home, id).unlink(missing_ok=True)
    return trashed


def erase_picture(home: Home, id: str) -> None:
    """Delete a picture and its thumbnail for good; one that is gone already is no error.

    Raises:
        HomeError: it can't be deleted.
    """
    if picture := _picture(home, id):
        with explain_write_errors(home.gallery):
            picture.path.unlink(missing_ok=True)
            _thumbnail_path(home, id).unlink(missing_ok=True)


def restore_picture(home: Home, trashed: Path) -> Path:
    """Put a picture from the trash back into the gallery, unchanged.

    Raises:
        HomeError: it is no longer in the trash.
    """
    path = trash_folder(home, home.gallery) / trashed.name
    if time_of_id(path.name) is None or not path.is_file() or path.suffix != ".png":
        raise HomeError("This picture is no longer in the trash.")
    with explain_write_errors(home.gallery):
        return path.rename(home.gallery / original_name(path))


def thumbnail_file(home: Home, id: str) -> Path | None:
    """Path of a picture's thumbnail, a WebP of at most 256 pixels a side; None if the picture is damaged.

    It is made when it is first asked for.

    Raises:
        HomeError: there is no such picture, or the thumbnail can't be written.
    """
    picture, path = find_picture(home, id), _thumbnail_path(home, id)
    if path.exists():
        return path
    try:
        with Image.open(picture.path, formats=["PNG"]) as image:
            small = image.convert("RGB")
    except _DAMAGE:
        return None
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    with explain_write_errors(path.parent):
        path.parent.mkdir(mode=0o700, exist_ok=True)
    write_home_file(path, buffer.getvalue())
    return path


def _thumbnail_path(home: Home, id: str) -> Path:
    return home.gallery / ".thumbs" / f"{id}.webp"


def _is_complete_png(path: Path) -> bool:
    """Whether a file starts and ends as a PNG does; nothing between is read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_SIGNATURE))
            file.seek(-len(_END), io.SEEK_END)
            return start == _SIGNATURE and file.read() == _END
    except OSError:
        return False


def _parameters(recipe: Mapping[str, Any]) -> str:
    """Write a recipe in A1111's format, so that tools made for A1111 can show it."""
    parts = [NamedAdapter(part["name"], part["strength"], part.get("elsewhere", part["sha256"])[:12])
             for part in recipe["adapters"]]   # fmt: skip
    values = {
        "Steps": recipe["steps"], "Sampler": SAMPLERS[recipe.get("sampler", "ddim")].title,
        "Schedule type": recipe.get("schedule", "").title(),
        "Clip skip": recipe["clip_skip"] + 1 if "clip_skip" in recipe else "",
        "CFG scale": f"{recipe['guidance']:g}", "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}", "Model": Path(recipe["base"]).name,
        "Version": f"Atelier {recipe['version']}",
    }   # fmt: skip
    return parameters_text(recipe["prompt"], recipe["negative"], parts, values)


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:   # run from the source tree
        return "0"
