"""A picture of the draft that is cropped, or painted on to say which part of it is learned."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from PIL import Image, ImageOps

from atelier.app.store.drafts.create_draft import (
    Draft,
    DraftPicture,
    change_pictures,
    draft_file,
    load_draft,
    thumbnail_uri,
)
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.training.data.images import SAVED_AS, PictureError, open_picture, save_pixels
from atelier.training.data.masks import mask_name, open_mask
from atelier.training.data.picture_check import examine

EDIT_SIDE = 1024   # pixels; the page sends three pictures of this size, and training uses no more


def open_for_editing(home: Home, picture_id: str) -> tuple[Image.Image, Image.Image | None]:
    """A picture, made smaller where it is large, and its mask at the same size.

    Raises:
        ValueError: it is no longer in the draft, or can't be opened.
    """
    picture = _find(load_draft(home), picture_id)
    shown = _shown(open_picture(draft_file(home, picture.file)))
    return shown, open_mask(draft_file(home, picture.mask), shown.size) if picture.mask else None


def save_edit(home: Home, picture_id: str, edited: Image.Image, painted: Image.Image | None, meaning: str) -> Draft:
    """Take an edited picture in place of the one before; it can be undone. Returns the new draft.

    Args:
        home: has the draft.
        picture_id: which of its pictures.
        edited: what is left of the picture after cropping.
        painted: of the same size, white where it was painted on; None or black keeps the mask from before, unless the
            picture was cropped.
        meaning: what is painted is to ``learn`` or to ``ignore``; ``whole`` learns the whole picture.

    Raises:
        ValueError: nothing would be learned, or the picture can't be used.
    """
    before = _find(load_draft(home), picture_id)
    after = _cropped(home, before, edited)
    if painted is not None and painted.getbbox() and meaning != "whole":
        after = _with_mask(home, after, painted, meaning)
    elif before.mask and meaning != "whole" and after.facts == before.facts:
        after = replace(after, mask=mask_name(Path(after.file)))
        shutil.copyfile(draft_file(home, before.mask), draft_file(home, after.mask))
    return change_pictures(home, words.picture_edited(before.name), lambda pictures: tuple(
        after if picture.id == picture_id else picture for picture in pictures))   # fmt: skip


def _find(draft: Draft, picture_id: str) -> DraftPicture:
    for picture in draft.usable:
        if picture.id == picture_id:
            return picture
    raise ValueError(words.PICTURE_GONE)


def _shown(picture: Image.Image) -> Image.Image:
    shown = picture.copy()
    shown.thumbnail((EDIT_SIDE, EDIT_SIDE))
    return shown


def _cropped(home: Home, before: DraftPicture, edited: Image.Image) -> DraftPicture:
    """The picture under a new file name, with all its pixels where it was not cropped."""
    old = draft_file(home, before.file)
    new = old.with_name(uuid4().hex + old.suffix)
    if edited.size == _shown(open_picture(old)).size:
        shutil.copyfile(old, new)
        return replace(before, file=new.name, mask="")
    save_pixels(edited.convert("RGB"), new, SAVED_AS[before.facts.format if before.facts else "PNG"])
    try:
        picture, facts = examine(new, {})
    except PictureError:
        new.unlink()
        raise
    return replace(before, file=new.name, mask="", thumb=thumbnail_uri(picture), facts=facts)


def _with_mask(home: Home, picture: DraftPicture, painted: Image.Image, meaning: str) -> DraftPicture:
    mask = painted.convert("L").point([0, *[255] * 255])   # white, however thin the paint
    if meaning == "ignore":
        mask = ImageOps.invert(mask)
    if not mask.getbbox():
        raise ValueError(words.NOTHING_LEFT)
    name = mask_name(Path(picture.file))
    mask.save(draft_file(home, name))
    return replace(picture, mask=name)
