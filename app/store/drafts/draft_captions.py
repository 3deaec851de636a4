"""Captions of the draft's pictures as a person types them: one by one, or all at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from atelier.app.store.drafts.create_draft import (
    MAX_CAPTION,
    Draft,
    DraftPicture,
    change_pictures,
    load_draft,
    set_caption,
)
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.training.data.captions import Captioner

TRIGGER = "{trigger}"
_IN_FRONT = re.compile(r"\{trigger\}[\s,]*")


def split_trigger(caption: str) -> tuple[bool, str]:
    """Whether a caption begins with the trigger word's place, and what follows.

    >>> split_trigger("{trigger}, on a table"), split_trigger("a {trigger} fox")
    ((True, 'on a table'), (False, 'a {trigger} fox'))
    """
    found = _IN_FRONT.match(caption)
    return (True, caption[found.end():]) if found else (False, caption)


def with_trigger(caption: str, captioner: Captioner) -> str:
    """A caption with the trigger word: where it stands already, else in front. An empty one stays empty."""
    text = caption.strip()
    known = bool(captioner.trigger) and captioner.has_trigger(captioner.fill(text))
    return text if not text or known or TRIGGER in text else f"{TRIGGER} {text}"


def type_caption(home: Home, picture_id: str, text: str, captioner: Captioner) -> Draft:
    """Save what was typed as a picture's caption; nothing means the template.

    Raises:
        ValueError: it is too long.
    """
    return set_caption(home, picture_id, with_trigger(text, captioner))


def edit_captions(home: Home, how: str, find: str, text: str, captioner: Captioner) -> Draft:
    """Change all captions at once, those of the template too; it can be undone.

    Args:
        home: has the draft.
        how: ``replace`` puts ``text`` where ``find`` stands, ``front`` puts it before and ``end`` behind the caption.
        find: what is looked for, upper and lower case alike.
        text: what is put there.
        captioner: with the caption of pictures that have none.

    Raises:
        ValueError: a field is empty, nothing would change, or a caption would become too long.
    """
    if not (find if how == "replace" else text.strip()):
        raise ValueError(words.NOTHING_TO_FIND if how == "replace" else words.NO_TEXT_TO_ADD)
    change = _change_of(how, find, text.strip())
    before = load_draft(home).usable
    captions = {picture.id: _edited(picture, change, captioner) for picture in before}
    changed = sum(captions[picture.id] != picture.caption for picture in before)
    if not changed:
        raise ValueError(words.NO_CAPTION_CHANGED)
    return change_pictures(home, words.captions_changed(changed), lambda pictures: tuple(
        replace(picture, caption=captions.get(picture.id, picture.caption)) for picture in pictures))   # fmt: skip


def _change_of(how: str, find: str, text: str) -> Callable[[str], str]:
    if how == "replace":
        return lambda caption: re.sub(re.escape(find), lambda _: text, caption, flags=re.IGNORECASE)
    if how == "end":
        return lambda caption: f"{caption}{'' if text.startswith(',') else ' '}{text}"

    def in_front(caption: str) -> str:
        """Before the caption, but behind a trigger word that begins it."""
        starts, rest = split_trigger(caption)
        return f"{TRIGGER} {text} {rest}" if starts else f"{text} {caption}"

    return in_front


def _edited(picture: DraftPicture, change: Callable[[str], str], captioner: Captioner) -> str:
    before = picture.caption or captioner.template
    after = " ".join(change(before).split())
    if after == before:
        return picture.caption
    if len(after) > MAX_CAPTION:
        raise ValueError(words.caption_too_long(len(after), MAX_CAPTION))
    return with_trigger(after, captioner)
