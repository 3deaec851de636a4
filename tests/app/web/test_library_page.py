"""The Library page shows a page of cards at a time, and what was noted on them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.library_list import PAGE, LibraryFilter
from atelier.app.store.adapter_notes import AdapterNotes, save_notes
from atelier.app.store.gallery import encode_picture, trash_picture
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import AdapterCard, find_adapter, list_unreadable, read_library
from atelier.app.store.trash import move_to_trash
from atelier.app.web.components.urls import cover_url
from atelier.app.web.pages import library, library_tools
from atelier.training.config.events import Measured
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig

CARD = AdapterCard(name="rex", path=Path("rex"), kind="lora", trigger="rex", subject="dog", base="embedded",
                   title="SD 1.5", family="sd1", bytes=5, created=datetime(2026, 1, 1, tzinfo=UTC), thumbnail="",
                   pictures=5)   # fmt: skip


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    cards = [replace(CARD, name=f"rex{i:05d}") for i in range(2 * PAGE + 1)]
    monkeypatch.setattr(library, "list_adapters", lambda _: cards)
    return open_home(own_home)


def test_a_library_is_shown_a_page_at_a_time(home: Home) -> None:
    wanted = LibraryFilter(sort="name")
    first, last = (library._show(home, wanted, page, "")[0] for page in (0, 99))
    assert len(first["cards"]) == PAGE and (first["before"], first["after"]) == ("", "1")
    assert len(last["cards"]) == 1 and (last["before"], last["after"]) == ("1", "")
    assert last["range"] == f"{2 * PAGE + 1}–{2 * PAGE + 1} of {2 * PAGE + 1}"
    assert library._show(home, LibraryFilter("rex00001"), 0, "")[0]["range"] == ""
    assert len(json.dumps(first)) < 20_000   # without thumbnails


def test_stars_and_tags_are_on_the_cards(home: Home) -> None:
    save_notes(home, "rex00003", star=True, tags=("dog",), low=0.0, high=1.5)
    [card] = library._show(home, LibraryFilter(starred=True), 0, "")[0]["cards"]
    assert (card["name"], card["star"], card["tags"]) == ("rex00003", True, "dog")


def test_a_picture_of_the_gallery_can_be_the_cover_until_it_is_deleted(home: Home, own_home: Path) -> None:
    card = replace(CARD, name="rex00003", path=home.adapters / "rex00003.safetensors")
    recipe = {"prompt": "x", "negative": "", "seed": 1, "steps": 4, "guidance": 3.0, "base": "embedded", "adapters": []}
    id = "20260101-000000-000000-abcdef"
    (home.gallery / f"{id}.png").write_bytes(encode_picture(Image.new("RGB", (8, 8)), recipe))
    assert cover_url(card, AdapterNotes()) == ""
    notes = save_notes(home, "rex00003", cover=id)
    assert f"/.thumbs/{id}.webp" in cover_url(card, notes)
    trash_picture(home, id)
    assert cover_url(card, notes) == ""
    assert cover_url(card, AdapterNotes(cover="../../x")) == ""


@pytest.mark.parametrize("values", [(None,) * 6, ("x" * 9999, 1, "no", "?", "??", -5), ("", 0, "", "", "", "7")])
def test_filters_from_a_browser_may_be_anything(home: Home, values: tuple[object, ...]) -> None:
    library._show(home, *library._wanted(values), "../x")


def test_the_trash_and_the_run_of_an_adapter_are_shown(own_home: Path) -> None:
    home = open_home(own_home)
    assert library_tools.show_trash(home) == {"empty": True, "files": []}
    (home.adapters / "rex.safetensors").write_text("x")
    trashed = move_to_trash(home, home.adapters / "rex.safetensors")
    [file] = library_tools.show_trash(home)["files"]
    assert file["name"] == "rex" and file["id"] == f"adapters/{trashed.name}" and file["about"].startswith("Adapter")
    assert library_tools.run_facts(home, CARD) == {}
    run = RunFolder.create(home.runs / "20260101-000000-000000-rex", TrainConfig(name="rex", pictures="x"))
    run.append(Measured(10, 0.5, 0.4, 0.95, 0.123, [0.1], 1))
    assert library_tools.run_facts(home, CARD) == {"Memorization": "0.95: redraws its pictures", "Drift": "0.12"}


def test_an_adapter_names_the_one_it_continues_and_those_that_continue_it(own_home: Path) -> None:
    home = open_home(own_home)
    adapters = create_adapters("lora", {"rank": 1}, [Spec("unet.a", (8, 6))])
    save_adapter(home.adapters / "rex.safetensors", adapters, {})
    save_adapter(home.adapters / "max.safetensors", create_adapters("lora", {"rank": 2}, [Spec("unet.a", (8, 6))]),
                 {"atelier.parent": find_adapter(home, "rex").hash})   # fmt: skip
    shown = {name: library._show(home, LibraryFilter(), 0, name)[2] for name in ("rex", "max")}
    assert shown["rex"]["lineage"] == [{"label": "Continued by", "adapters": ["max"]}]
    assert shown["max"]["lineage"] == [{"label": "Continues", "adapters": ["rex"]}]
    assert shown["max"]["continue"] == "/?continue=max"


def test_a_library_that_was_never_read_is_read_a_few_files_at_a_time(own_home: Path, monkeypatch) -> None:
    home = open_home(own_home)
    monkeypatch.setattr("atelier.app.store.library._READ_AT_ONCE", 2)
    for number in range(5):
        (home.adapters / f"a{number}.safetensors").write_bytes(b"")
    assert list(read_library(home)) == [(0, 5), (2, 5)], "and the last few with the list itself"
    assert len(list_unreadable(home)) == 5 and list(read_library(home)) == []
