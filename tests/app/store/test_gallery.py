"""The gallery: the recipe inside each PNG, paging that never opens what it does not show, small pictures on demand."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from atelier.app.store.gallery import (
    find_picture,
    gallery_page,
    make_recipe,
    picture_id,
    read_recipe,
    restore_picture,
    save_picture,
    thumbnail_file,
    trash_picture,
)
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.library import AdapterCard
from atelier.training.sampling.sample import DrawRequest

RECIPE = {
    "prompt": "a füchslein, \"quoted\"\n狐 {x} ${y}", "negative": "blurry: very", "seed": 42, "steps": 20,
    "guidance": 3.5, "base": "/models/my sd", "family": "sd1",
    "adapters": [{"name": "fox", "sha256": "ab" * 32, "kind": "lora", "strength": 0.8},
                 {"name": "oil 2", "sha256": "cd" * 32, "kind": "lora", "strength": -1.0}],
}  # fmt: skip


@pytest.fixture
def home(own_home) -> Home:
    return open_home(own_home)


def image(width: int = 64, height: int = 48) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def fill(home: Home, count: int) -> list[str]:
    return [save_picture(home, image(), RECIPE).stem for _ in range(count)]


def small_one(home: Home, id: str) -> Path:
    path = thumbnail_file(home, id)
    assert path is not None
    return path


def chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, read by hand."""
    raw, found = path.read_bytes()[8:], []
    while raw:
        (length,), kind = struct.unpack(">I", raw[:4]), raw[4:8]
        body, (check,) = raw[8 : 8 + length], struct.unpack(">I", raw[8 + length : 12 + length])
        assert zlib.crc32(kind + body) == check
        found.append((kind, body))
        raw = raw[12 + length :]
    return found


def texts(path: Path) -> dict[str, tuple[bytes, str]]:
    """Text chunks by keyword: the chunk's kind and its text."""
    result = {}
    for kind, body in chunks(path):
        if kind == b"tEXt":
            keyword, _, text = body.partition(b"\0")
            result[keyword.decode()] = (kind, text.decode("latin-1"))
        elif kind == b"iTXt":
            keyword, _, rest = body.partition(b"\0")
            assert rest[0] == 0   # not compressed
            result[keyword.decode()] = (kind, rest[2:].split(b"\0", 2)[2].decode())
    return result


def test_the_png_carries_the_whole_recipe(home):
    path = save_picture(home, image(), RECIPE)
    kind, text = texts(path)["atelier"]
    stored = json.loads(text)
    assert kind == b"iTXt" and {key: stored[key] for key in RECIPE} == RECIPE
    assert (stored["schema"], stored["width"], stored["height"]) == (1, 64, 48)
    assert stored["version"] and stored["created"]
    assert read_recipe(path) == stored
    assert Image.open(path).tobytes() == image().tobytes()


def test_other_tools_find_their_own_words(home):
    # As those tools read it: the prompt, then a line for the negative one, then comma separated `key: value`.
    _, text = texts(save_picture(home, image(), RECIPE))["parameters"]
    *prompt, negative, last = text.split("\n")
    assert "\n".join(prompt) == RECIPE["prompt"] + " <lora:fox:0.8> <lora:oil 2:-1>"
    assert negative == "Negative prompt: blurry: very"
    found = dict(re.findall(r'\s*([\w ]+):\s*("[^"]+"|[^,]*)(?:,|$)', last))
    assert found["Steps"] == "20" and found["CFG scale"] == "3.5" and found["Seed"] == "42"
    assert found["Size"] == "64x48" and found["Model"] == "my sd"
    assert found["Lora hashes"] == f'"fox: {"ab" * 6}, oil 2: {"cd" * 6}"'


def test_plain_text_is_written_the_way_the_oldest_tools_read(home):
    plain = {**RECIPE, "prompt": "a fox", "negative": "", "adapters": []}
    kind, text = texts(save_picture(home, image(), plain))["parameters"]
    assert kind == b"tEXt" and text.startswith("a fox\nSteps: 20,") and "Negative" not in text and "Lora" not in text


def test_a_recipe_draws_the_same_picture_of_a_batch_again(tmp_path):
    request = DrawRequest(prompt="a fox", negative="blur", seed=7, count=4, steps=9, guidance=2.5)
    file = tmp_path / "fox.safetensors"
    file.write_bytes((2).to_bytes(8, "little") + b"{}" + b"data")
    card = AdapterCard(name="fox", path=file, kind="lora", trigger="", subject="", base="", title="", family="",
                       bytes=0, created=datetime.now(UTC), thumbnail="", pictures=0)  # fmt: skip
    recipe = make_recipe(request, 3, "embedded", "embedded", [(card, 0.5)])
    names = ("prompt", "negative", "steps", "guidance")
    assert {name: recipe[name] for name in names} == {name: getattr(request, name) for name in names}
    assert (recipe["seed"], recipe["base"], recipe["family"]) == (10, "embedded", "embedded")
    # sha256 of b"data", from the tables
    digest = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"
    assert recipe["adapters"] == [{"name": "fox", "sha256": digest, "kind": "lora", "strength": 0.5}]


def test_a_recipe_says_what_was_unwanted_where_something_was():
    plain = make_recipe(DrawRequest(prompt="a fox"), 0, "embedded", "embedded", [])
    asked = make_recipe(DrawRequest(prompt="a fox", unwanted="snow", unwanted_strength=0.5), 0, "embedded", "sd1", [])
    assert not {"unwanted", "unwanted_strength"} & plain.keys()
    assert (asked["unwanted"], asked["unwanted_strength"]) == ("snow", 0.5)


@pytest.mark.parametrize("words", [None, "no json", "[1]", "3", '{"cut": '])
def test_a_png_without_a_good_recipe_has_none(tmp_path, words):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if words is not None:
        info.add_itxt("atelier", words)
    image().save(tmp_path / "x.png", pnginfo=info)
    assert read_recipe(tmp_path / "x.png") is None


def test_what_is_no_png_has_no_recipe(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    image().save(tmp_path / "jpeg.png", "JPEG")
    for path in (tmp_path / "text.png", tmp_path / "jpeg.png", tmp_path / "missing.png", tmp_path):
        assert read_recipe(path) is None


def test_ids_are_unique_and_in_the_order_of_making():
    ids = [picture_id() for _ in range(500)]
    assert len(set(ids)) == 500
    assert [id[:22] for id in ids] == sorted(id[:22] for id in ids)


def test_pages_go_back_in_time_without_gap_or_repetition(home):
    ids = fill(home, 7)
    first = gallery_page(home, limit=3)
    assert [picture.id for picture in first] == ids[:-4:-1]
    assert all(picture.path.stem == picture.id for picture in first)
    fill(home, 2)   # newer ones don't shift the older pages
    second = gallery_page(home, before=first[-1].id, limit=3)
    assert [picture.id for picture in second] == ids[3:0:-1]
    trash_picture(home, second[-1].id)   # nor does the one that the page ended with, when it goes
    assert [picture.id for picture in gallery_page(home, before=second[-1].id, limit=3)] == [ids[0]]
    assert gallery_page(home, before=ids[0]) == []


def test_damaged_files_are_passed_over_and_strangers_ignored(home):
    ids = fill(home, 4)
    good = (home.gallery / f"{ids[0]}.png").read_bytes()
    (home.gallery / f"{ids[1]}.png").write_bytes(good[:-30])
    (home.gallery / f"{ids[2]}.png").write_text("hello")
    (home.gallery / f"{picture_id()}.png").write_bytes(b"")
    (home.gallery / f"{picture_id()}.png").mkdir()
    (home.gallery / "holiday.png").write_bytes(good)
    (home.gallery / f".{picture_id()}.png").write_bytes(good)
    assert [picture.id for picture in gallery_page(home, limit=2)] == [ids[3], ids[0]]


def test_only_the_pictures_of_the_page_are_opened(home, monkeypatch):
    ids = fill(home, 10)
    opened = set()
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *given: opened.add(self.stem) or real(self, *given))
    assert len(gallery_page(home, before=ids[8], limit=3)) == 3
    assert opened == set(ids[5:8])


def test_the_trash_gives_a_picture_back_unchanged(home):
    (id,) = fill(home, 1)
    path = home.gallery / f"{id}.png"
    content, small = path.read_bytes(), small_one(home, id)
    trashed = trash_picture(home, id)
    assert not path.exists() and not small.exists() and gallery_page(home) == []
    assert trashed.is_relative_to(home.trash)
    assert restore_picture(home, trashed) == path and path.read_bytes() == content
    assert [picture.id for picture in gallery_page(home)] == [id]
    with pytest.raises(HomeError, match="no longer in the trash"):
        restore_picture(home, trashed)


@pytest.mark.parametrize("id", ["", "..", "../state/queue", "20251122-075612-123456-../../../etc/passwd", "a\0b",
                                "20251122-075612-123456-abcdef", "99999999-999999-999999-abcdef"])
def test_an_id_of_nothing_is_refused(home, id):
    for action in (find_picture, trash_picture, thumbnail_file):
        with pytest.raises(HomeError, match="no longer in the gallery"):
            action(home, id)


def test_small_pictures_are_made_once_and_only_when_asked_for(home):
    path = save_picture(home, image(600, 300), RECIPE)
    assert [p.name for p in home.gallery.iterdir()] == [path.name]
    small = small_one(home, path.stem)
    with Image.open(small) as opened:
        assert opened.format == "WEBP" and opened.size == (256, 128)
    before = small.stat().st_mtime_ns
    assert thumbnail_file(home, path.stem) == small and small.stat().st_mtime_ns == before
    assert [p.name for p in small.parent.iterdir()] == [small.name]


def test_a_small_picture_is_not_blown_up(home):
    path = save_picture(home, image(64, 48), RECIPE)
    assert Image.open(io.BytesIO(small_one(home, path.stem).read_bytes())).size == (64, 48)


def test_a_picture_damaged_inside_has_no_small_one(home):
    path = save_picture(home, Image.effect_noise((300, 300), 90), RECIPE)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 400] = bytes(400)
    path.write_bytes(raw)
    assert thumbnail_file(home, path.stem) is None


def test_a_picture_that_can_not_be_written_leaves_the_gallery_as_it_was(home):
    home.gallery.rmdir()
    with pytest.raises(HomeError, match="can't be used"):
        save_picture(home, image(), RECIPE)
    assert not home.gallery.exists()
