"""The index of the gallery: made from the pictures, searched, kept up to date, and made again when it is damaged."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from atelier.app.store import gallery_index
from atelier.app.store.gallery import encode_picture, trash_picture
from atelier.app.store.gallery_index import (
    PictureQuery,
    adapters_in_gallery,
    count_pictures,
    describe_in_background,
    describe_pictures,
    recent_adapters,
    recent_prompts,
    search_pictures,
    update_index,
)
from atelier.app.store.home import Home, open_home
from atelier.app.store.picture_marks import put_on_board, read_marks, set_stars, take_off_board

PROMPTS = ["a Fox in snow", "an owl", "a fox at sea", "100 % _odd_ prompt"]


@pytest.fixture
def home(own_home: Path) -> Home:
    home = open_home(own_home)
    for day, prompt in enumerate(PROMPTS, start=1):
        add(home, day, prompt, ["Rex", f"style {day}"] if day < 3 else [])
    (home.gallery / "20260105-000000-000000-aaaaaa.png").write_bytes(b"not whole")
    (home.gallery / "holiday.png").write_bytes(b"not ours")
    update_index(home)
    return home


def add(home: Home, day: int, prompt: str, adapters: Sequence[str] = ()) -> str:
    parts = [{"name": name, "sha256": "0" * 64, "kind": "lora", "strength": 1.0} for name in adapters]
    recipe = {"prompt": prompt, "negative": "", "seed": day, "steps": 4, "guidance": 3.0, "base": "embedded",
              "adapters": parts}   # fmt: skip
    id = f"202601{day:02}-000000-000000-abcdef"
    (home.gallery / f"{id}.png").write_bytes(encode_picture(Image.new("RGB", (4, 4)), recipe))
    return id


def found(home: Home, **query: object) -> list[int]:
    """The days of the pictures that fit."""
    return [int(picture.id[6:8]) for picture in search_pictures(home, PictureQuery(**query))]   # type: ignore[arg-type]


def test_pictures_are_found_by_words_of_prompts_and_adapters(home: Home) -> None:
    assert found(home) == [5, 4, 3, 2, 1]
    assert (found(home, text="FOX"), found(home, text="fox snow"), found(home, text="rex")) == ([3, 1], [1], [2, 1])
    assert (found(home, text="% _odd_"), found(home, text="%")) == ([4], [4])
    assert found(home, text="'; DROP TABLE pictures") == []
    assert (found(home, adapter="Rex"), found(home, adapter="rex"), found(home, adapter="style 2")) == ([2, 1], [], [2])
    assert found(home, since="2026-01-02", until="2026-01-03") == [3, 2]
    assert count_pictures(home, PictureQuery(text="fox")) == 2
    assert [picture.damaged for picture in search_pictures(home, PictureQuery())] == [True, False, False, False, False]
    assert adapters_in_gallery(home) == ["Rex", "style 1", "style 2"]
    assert recent_prompts(home, 2) == PROMPTS[:1:-1] and recent_adapters(home)[0] in ("Rex", "style 2")


def test_a_list_goes_on_where_its_last_page_ended(home: Home) -> None:
    first = search_pictures(home, PictureQuery(), limit=2)
    add(home, 9, "newer than the page")
    update_index(home)
    rest = search_pictures(home, PictureQuery(), before=first[-1].id, limit=9)
    assert [picture.id[6:8] for picture in [*first, *rest]] == ["05", "04", "03", "02", "01"]


def test_the_index_follows_the_folder_and_reads_a_picture_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(gallery_index, "read_recipe", lambda path: read.append(path.stem[6:8]))
    update_index(home)
    add(home, 6, "new")
    trash_picture(home, "20260101-000000-000000-abcdef")
    update_index(home)
    assert read == ["06"] and found(home) == [6, 5, 4, 3, 2]
    assert adapters_in_gallery(home) == ["Rex", "style 2"]


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 100])
def test_a_deleted_or_damaged_index_is_made_again(home: Home, damage: bytes) -> None:
    (home.state / "gallery.sqlite").write_bytes(damage)
    update_index(home)
    assert found(home, text="fox") == [3, 1]


def test_stars_and_boards_outlive_the_index(home: Home) -> None:
    ids = {int(picture.id[6:8]): picture.id for picture in search_pictures(home, PictureQuery())}
    set_stars(home, [ids[1], ids[2], "gone"], True)
    set_stars(home, [ids[2]], False)
    put_on_board(home, "Foxes", [ids[3]])
    put_on_board(home, "Foxes", [ids[1]])
    for _ in range(2):
        update_index(home)
        assert (found(home, starred=True), found(home, board="Foxes")) == ([1], [3, 1])
        (home.state / "gallery.sqlite").unlink()
    update_index(home)
    take_off_board(home, "Foxes", ids.values())
    update_index(home)
    assert read_marks(home).boards == {} and found(home, board="Foxes") == []
    with pytest.raises(ValueError, match="no board named 'Foxes'"):
        take_off_board(home, "Foxes", [])
    with pytest.raises(ValueError, match="can't be used"):
        put_on_board(home, "../x", [])


@pytest.mark.parametrize("damage", ["", "[]", '{"stars": 5, "boards": {}}', '{"stars": [], "boards": []}'])
def test_damaged_marks_are_none(home: Home, damage: str) -> None:
    home.picture_marks.write_text(damage)
    assert read_marks(home).stars == frozenset() and update_index(home) == 0


def test_a_large_gallery_is_read_in_pieces(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.state / "gallery.sqlite").unlink()
    monkeypatch.setattr(gallery_index, "_BATCH", 2)
    assert update_index(home, seconds=0) == 4, "of six files, one that is not ours"
    assert found(home) == [5], "the newest first"
    while update_index(home, seconds=0):
        pass
    assert found(home) == [5, 4, 3, 2, 1]


def paint(home: Home, day: int, *colours: str) -> str:
    """A picture of vertical stripes, drawn on a day."""
    image = Image.new("RGB", (64, 64), colours[0])
    for number, colour in enumerate(colours):
        image.paste(colour, (64 * number // len(colours), 0, 64, 64))
    recipe = {"prompt": f"stripes {colours[0]}", "negative": "", "seed": day, "steps": 4, "guidance": 3.0,
              "base": "embedded", "adapters": []}   # fmt: skip
    id = f"202602{day:02}-000000-000000-abcdef"
    (home.gallery / f"{id}.png").write_bytes(encode_picture(image, recipe))
    return id


def test_pictures_are_found_by_colour_and_by_what_looks_alike(home: Home) -> None:
    red = paint(home, 1, "#e01010")
    paint(home, 2, "#d02020")
    paint(home, 3, "#1030e0", "#e01010")
    paint(home, 4, "#10a030")
    update_index(home)
    assert found(home, colour="red") == [], "nothing is described yet"
    assert found(home, similar=red) == []
    assert describe_pictures(home) == 0
    assert (found(home, colour="red"), found(home, colour="blue"), found(home, colour="green")) == ([3, 2, 1], [3], [4])
    assert found(home, colour="red", text="blue") == [] and found(home, colour="'; DROP TABLE looks") != []
    assert count_pictures(home, PictureQuery(colour="red")) == 3
    assert found(home, similar=red)[:3] == [1, 2, 3], "the same picture first, then the nearest"
    assert found(home, similar=red, colour="blue") == [3]
    assert search_pictures(home, PictureQuery(similar=red), before="20260201") == [], "one page is all"
    trash_picture(home, red)
    update_index(home)
    assert found(home, colour="red") == [3, 2] and found(home, similar=red) == []


def test_pictures_are_described_a_little_at_a_time_and_each_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(1, 4):
        paint(home, day, "#e01010")
    update_index(home)
    assert describe_pictures(home, seconds=0.0) == 6, "one of seven; the damaged one is left out"
    assert describe_pictures(home) == 0
    monkeypatch.setattr(gallery_index, "_look", lambda _: pytest.fail("it was described before"))
    assert describe_pictures(home) == 0


def test_a_background_thread_ends_when_all_is_described_or_the_home_is_gone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait() -> None:
        assert gallery_index._DESCRIBING.acquire(timeout=30)
        gallery_index._DESCRIBING.release()

    paint(home, 1, "#e01010")
    update_index(home)
    describe_in_background(home)
    wait()
    assert describe_pictures(home) == 0
    monkeypatch.setattr(gallery_index, "describe_pictures", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    describe_in_background(home)
    wait()


@pytest.mark.parametrize("work", [gallery_index._read_new, gallery_index._describe])
def test_what_is_known_costs_nothing_when_a_picture_comes(
    home: Home, work: Callable[[Home, sqlite3.Connection, float], int]
) -> None:
    days = iter((10, 11))

    def steps() -> int:
        """The steps of SQLite's machine that the work on one new picture takes."""
        found = [0]
        add(home, next(days), "new")
        with gallery_index._open(home) as db:
            gallery_index._compare_names(home, db)
            if work is gallery_index._describe:
                gallery_index._read_new(home, db, time.monotonic() + 60)
            db.set_progress_handler(lambda: found.__setitem__(0, found[0] + 1), 1)
            assert work(home, db, time.monotonic() + 60) == 0
        return found[0]

    def settle() -> None:
        while update_index(home) or describe_pictures(home):
            pass

    settle()
    first, whole = steps(), home.gallery / "20260101-000000-000000-abcdef.png"
    for number in range(200):
        (home.gallery / f"20260301-000000-000{number:03}-abcdef.png").hardlink_to(whole)
    settle()
    assert steps() < 2 * first
