"""Captions that a model proposes go into the draft as typed ones do, and can be taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from atelier.app.services.create import caption_proposals
from atelier.app.services.create.caption_proposals import captioner_hint, propose_captions
from atelier.app.store.drafts.create_draft import add_pictures, load_draft, set_caption, undo_change
from atelier.app.store.home import Home, open_home


class Speaker:
    """A caption model that says how wide a picture is."""

    def caption(self, picture: Image.Image) -> str:
        return f"a thing {picture.width} wide"


@pytest.fixture
def home(own_home: Path, tmp_path: Path) -> Home:
    home = open_home(own_home)
    files = [tmp_path / f"{width}.png" for width in (96, 128, 160)]
    for file in files:
        Image.linear_gradient("L").resize((int(file.stem), 96)).save(file)
    assert len(list(add_pictures(home, files))) == 3
    return home


def test_pictures_without_a_caption_get_one_behind_the_trigger(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_proposals, "load_caption_model", lambda _: Speaker())
    first, *_ = load_draft(home).usable
    set_caption(home, first.id, "my own words")
    assert list(propose_captions(home)) == [(0, 2), (1, 2), (2, 2)]
    found = [picture.caption for picture in load_draft(home).usable]
    assert found == ["my own words", "{trigger} a thing 128 wide", "{trigger} a thing 160 wide"]
    with pytest.raises(ValueError, match="Every picture has a caption already"):
        list(propose_captions(home))
    assert [picture.caption for picture in undo_change(home).usable] == ["my own words", "", ""]


def test_what_is_typed_meanwhile_stays(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_proposals, "load_caption_model", lambda _: Speaker())
    proposing = propose_captions(home)
    next(proposing)
    set_caption(home, load_draft(home).usable[1].id, "typed")
    list(proposing)
    assert load_draft(home).usable[1].caption == "typed"


def test_the_page_says_where_a_model_belongs_and_what_is_wrong_with_one(home: Home) -> None:
    assert str(home.caption_model) in captioner_hint(home)
    home.caption_model.mkdir()
    assert "no config.json" in captioner_hint(home)
    (home.caption_model / "config.json").write_text('{"model_type": "blip"}')
    assert "no weights as .safetensors" in captioner_hint(home)
    (home.caption_model / "model.safetensors").touch()
    assert captioner_hint(home) == ""
