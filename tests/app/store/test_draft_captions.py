"""Captions typed on the page: the trigger word is never lost, and all can be changed at once and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from atelier.app.store.drafts.create_draft import Draft, add_pictures, load_draft, picture_files, undo_change
from atelier.app.store.drafts.draft_captions import edit_captions, type_caption
from atelier.app.store.drafts.draft_editing import open_for_editing, save_edit
from atelier.app.store.home import Home, open_home
from atelier.training.data.captions import Captioner
from atelier.training.data.images import open_picture

CAPTIONER = Captioner(trigger="rex", subject="dog", template="a photo of a {trigger} {subject}")


@pytest.fixture
def home(own_home: Path, tmp_path: Path) -> Home:
    home = open_home(own_home)
    for i, name in enumerate(("a.png", "b.png")):
        Image.effect_noise((96 + i, 64), 80).convert("RGB").save(tmp_path / name)
    list(add_pictures(home, [tmp_path / "a.png", tmp_path / "b.png"]))
    return home


def captions(draft: Draft) -> list[str]:
    return [picture.caption for picture in draft.usable]


@pytest.mark.parametrize(("typed", "saved"), [
    ("on a table", "{trigger} on a table"), ("Rex on a table", "Rex on a table"), (" ", ""),
    ("a {trigger} dog", "a {trigger} dog"), ("a rexo", "{trigger} a rexo")])   # fmt: skip
def test_the_trigger_word_is_added_where_it_is_missing(home: Home, typed: str, saved: str) -> None:
    draft = type_caption(home, load_draft(home).usable[0].id, typed, CAPTIONER)
    assert captions(draft)[0] == saved == captions(load_draft(home))[0]
    written = picture_files(home, draft)[0].with_suffix(".txt")
    assert (written.read_text() if written.exists() else "") == saved


def test_all_captions_are_changed_at_once_and_back(home: Home) -> None:
    type_caption(home, load_draft(home).usable[0].id, "{trigger}, on a Red table", CAPTIONER)
    before = captions(load_draft(home))
    assert captions(edit_captions(home, "front", "", "outside", CAPTIONER)) == [
        "{trigger} outside on a Red table", "outside a photo of a {trigger} {subject}"]
    assert captions(undo_change(home)) == before
    assert captions(edit_captions(home, "end", "", ", at night", CAPTIONER)) == [
        "{trigger}, on a Red table, at night", "a photo of a {trigger} {subject}, at night"]
    changed = captions(edit_captions(home, "replace", "red", "blue", CAPTIONER))[0]
    assert changed == "{trigger}, on a blue table, at night"
    with pytest.raises(ValueError, match="No caption would change"):
        edit_captions(home, "replace", "green", "blue", CAPTIONER)
    with pytest.raises(ValueError, match="Enter the text to add"):
        edit_captions(home, "end", "", " ", CAPTIONER)
    with pytest.raises(ValueError, match="at most 2000"):
        edit_captions(home, "end", "", "x" * 2000, CAPTIONER)


def test_a_picture_is_masked_and_cropped_and_both_are_undone(home: Home) -> None:
    picture = load_draft(home).usable[0]
    original = open_picture(picture_files(home, load_draft(home))[0])
    shown, mask = open_for_editing(home, picture.id)
    assert shown.size == (96, 64) and mask is None
    painted = Image.new("L", shown.size)
    painted.paste(200, (0, 0, 10, 64))
    draft = save_edit(home, picture.id, shown.convert("RGBA"), painted, "ignore")
    _, mask = open_for_editing(home, picture.id)
    assert mask is not None and mask.getbbox() == (10, 0, 96, 64), "what was painted is ignored"
    assert open_picture(picture_files(home, draft)[0]).tobytes() == original.tobytes()
    unpainted = Image.new("L", shown.size)
    assert save_edit(home, picture.id, shown, unpainted, "learn").usable[0].mask, "kept where nothing was painted"
    assert not save_edit(home, picture.id, shown, painted, "whole").usable[0].mask
    assert undo_change(home).usable[0].mask
    draft = save_edit(home, picture.id, shown.crop((0, 0, 40, 40)), None, "learn")
    assert draft.usable[0].facts and draft.usable[0].facts.size == (40, 40) and not draft.usable[0].mask
    assert undo_change(home).usable[0].mask, "the step before"
    assert open_for_editing(home, picture.id)[0].size == (96, 64)
    with pytest.raises(ValueError, match="nothing would be learned"):
        save_edit(home, picture.id, shown, Image.new("L", shown.size, 255), "ignore")
