"""Pictures from elsewhere in the gallery: own ones byte for byte, others with their settings, hostile ones refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from atelier.app.services.add_pictures import AddedPicture, add_pictures
from atelier.app.store.gallery import encode_picture, gallery_page, read_recipe, save_picture, trash_picture
from atelier.app.store.gallery_index import PictureQuery, search_pictures, update_index
from atelier.app.store.home import Home, open_home
from atelier.app.web.pages.gallery import _Events

RECIPE = {"prompt": "a fox", "negative": "", "seed": 7, "steps": 4, "guidance": 3.0, "sampler": "ddim",
          "base": "embedded", "adapters": []}   # fmt: skip


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def add(home: Home, *paths: Path) -> list[AddedPicture]:
    return list(add_pictures(home, paths))


def of_a1111(path: Path) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a (red:1.2) owl\nNegative prompt: fog\nSteps: 12, Sampler: Euler a, CFG scale: 5, "
                                  "Seed: 99, Size: 64x96, Model: dream, Model hash: 6ce0161689")   # fmt: skip
    Image.new("RGB", (64, 96), "red").save(path, pnginfo=chunks)
    return path


def test_an_own_picture_comes_back_byte_for_byte_and_in_its_place(home: Home, tmp_path: Path):
    first = save_picture(home, Image.new("RGB", (64, 64), "blue"), RECIPE)
    later = save_picture(home, Image.new("RGB", (64, 64), "red"), RECIPE)
    away = tmp_path / first.name
    away.write_bytes(first.read_bytes())
    assert add(home, away) == [AddedPicture(away, first.stem, ("It was here already.",))]
    trash_picture(home, first.stem)
    [one] = add(home, away)
    assert one.id == first.stem and first.read_bytes() == away.read_bytes()
    assert [picture.id for picture in gallery_page(home)] == [later.stem, first.stem]
    renamed = tmp_path / "my fox.png"
    renamed.write_bytes(away.read_bytes())
    [other] = add(home, renamed)
    assert other.id not in ("", first.stem) and (home.gallery / f"{other.id}.png").read_bytes() == away.read_bytes()


def test_another_picture_under_a_taken_name_replaces_nothing(home: Home, tmp_path: Path):
    mine = save_picture(home, Image.new("RGB", (64, 64), "blue"), RECIPE)
    before, theirs = mine.read_bytes(), tmp_path / mine.name
    theirs.write_bytes(encode_picture(Image.new("RGB", (64, 64), "red"), RECIPE | {"prompt": "an owl"}))
    [one] = add(home, theirs)
    assert one.id != mine.stem and mine.read_bytes() == before
    assert (read_recipe(home.gallery / f"{one.id}.png") or {})["prompt"] == "an owl"


def test_a_picture_of_another_tool_brings_its_settings_and_is_found_by_them(home: Home, tmp_path: Path):
    path = of_a1111(tmp_path / "00001.png")
    [one] = add(home, path)
    assert one.notes[0].startswith("Settings from A1111")
    with Image.open(home.gallery / f"{one.id}.png") as kept:
        assert kept.size == (64, 96) and kept.getpixel((5, 5)) == (255, 0, 0)
    recipe = read_recipe(home.gallery / f"{one.id}.png") or {}
    assert (recipe["prompt"], recipe["negative"], recipe["seed"], recipe["steps"]) == ("a (red:1.2) owl", "fog", 99, 12)
    assert (recipe["width"], recipe["height"]) == (64, 96)
    update_index(home)
    assert [found.id for found in search_pictures(home, PictureQuery(text="owl"), "", 10)] == [one.id]


def test_what_is_no_picture_or_says_nothing_is_refused_in_a_sentence(home: Home, tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    cut = encode_picture(Image.effect_noise((64, 64), 90).convert("RGB"), RECIPE)
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    good = of_a1111(tmp_path / "good.png")
    text, plain, half, fine = add(home, *(tmp_path / f"{name}.png" for name in ("text", "plain", "cut")), good)
    assert "text.png" in text.reason and "cut.png" in half.reason
    assert "plain.png does not say how it was drawn" in plain.reason
    assert fine.id and [picture.id for picture in gallery_page(home)] == [fine.id]


def test_the_page_tells_of_every_file_and_shows_the_new_ones(home: Home, tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    so_far, filters = list[dict[str, str]](), ("", "", "", "", "", False)
    first = _Events(home).add([of_a1111(tmp_path / "a.png"), tmp_path / "text.png"], so_far, *filters)
    _, _, told, grid = _Events(home).add([of_a1111(tmp_path / "b.png")], so_far, *filters)
    assert [message["ok"] for message in first[2]["messages"]] == ["", "yes"]
    assert [message["ok"] for message in told["messages"]] == ["yes", "", "yes"]
    assert told["messages"][0]["text"].startswith("b.png is in the gallery. Settings from A1111")
    assert [tile["prompt"] for tile in grid["first"]] == 2 * ["a (red:1.2) owl"]
