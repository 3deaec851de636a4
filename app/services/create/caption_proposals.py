"""Captions that a local model proposes for the pictures of the draft that have none of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from atelier.app.services.create.picture_hints import draft_captioner
from atelier.app.store.drafts.create_draft import (
    MAX_CAPTION,
    Draft,
    DraftPicture,
    change_pictures,
    draft_file,
    load_draft,
)
from atelier.app.store.drafts.draft_captions import with_trigger
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.training.data.caption_model import CaptionModelError, check_caption_model, load_caption_model
from atelier.training.data.images import PictureError, open_picture


def captioner_hint(home: Home) -> str:
    """Why nothing can propose captions here, or where a model for it belongs; empty where one can."""
    if not home.caption_model.is_dir():
        return words.no_caption_model(str(home.caption_model))
    try:
        check_caption_model(home.caption_model)
    except CaptionModelError as error:
        return str(error)
    return ""


def propose_captions(home: Home) -> Iterator[tuple[int, int]]:
    """Propose a caption for each picture without one; yields how many are read, and of how many.

    All are put into the draft together, behind the trigger word's place, so that one undo takes them back.

    Raises:
        ValueError: the model or a picture can't be read, or every picture has a caption.
    """
    bare = [picture for picture in load_draft(home).usable if not picture.caption]
    if not bare:
        raise ValueError(words.ALL_CAPTIONED)
    yield 0, len(bare)
    model, found = load_caption_model(home.caption_model), {}
    for done, picture in enumerate(bare, 1):
        try:
            found[picture.id] = model.caption(open_picture(draft_file(home, picture.file)))[: MAX_CAPTION // 2]
        except PictureError:   # removed in the meantime
            continue
        yield done, len(bare)
    _put(home, found)


def _put(home: Home, found: dict[str, str]) -> Draft:
    captioner = draft_captioner(load_draft(home))
    captions = {id: with_trigger(text, captioner) for id, text in found.items()}

    def change(pictures: tuple[DraftPicture, ...]) -> tuple[DraftPicture, ...]:
        """Leave what was typed while the model looked at the pictures."""
        return tuple(replace(one, caption=one.caption or captions.get(one.id, "")) for one in pictures)

    return change_pictures(home, words.captions_changed(len(captions)), change)
