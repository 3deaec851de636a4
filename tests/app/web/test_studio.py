"""The Studio page: what a moving slider leaves behind, what Stop ends, and what a drawing starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest
import torch
from PIL import Image

from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.services.studio.wanted_drawings import WantedDrawings
from atelier.app.store.adapter_notes import save_notes
from atelier.app.store.gallery import find_picture, gallery_page, read_recipe, thumbnail_file, trash_picture
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import AdapterCard
from atelier.app.web.pages import studio, studio_picker
from atelier.app.web.pages.studio_start import start_picture
from atelier.training.base_models.base_info import BaseError
from atelier.training.sampling.decode import NotFiniteError
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.start_picture import StartPicture


class FakeEngine:
    """Draws black pictures, or fails; what happens at each step can be watched."""

    error: Exception | None = None
    notices: tuple[str, ...] = ()

    def __init__(self, at_step: Callable[[int], None] = lambda _: None) -> None:
        self.requests: list[DrawRequest] = []
        self.steps: list[int] = []
        self.starts: list[StartPicture | None] = []
        self.at_step = at_step

    def draw(self, _base: str, _adapters: Any, request: DrawRequest, *_: Any, callbacks: DrawCallbacks, **more: Any):
        self.starts.append(more["start"])
        if self.error:
            raise self.error
        for notice in self.notices:
            assert callbacks.on_notice and callbacks.on_step
            callbacks.on_notice(notice)
            callbacks.on_step(1, 2)
        self.requests.append(request)
        for step in range(1, 1 if self.notices else request.steps + 1):
            self.at_step(step)
            self.steps.append(step)
            if callbacks.on_step:
                callbacks.on_step(step, request.steps)
        return [Image.new("RGB", (1, 1)) for _ in range(request.count)]


NEWEST = datetime(2026, 11, 30, tzinfo=UTC)
SESSION = cast(gr.Request, SimpleNamespace(session_hash="a page"))
NAMES = [*(f.name for f in fields(DrawRequest)), "names", "base", "keep_seed", "live", "search",
         "details", "regions", "restored", "strength0"]   # fmt: skip
USUAL = {**{f.name: f.default for f in fields(DrawRequest)}, "prompt": "a fox", "names": "", "details": (),
         "regions": (), "restored": None, "base": "", "keep_seed": True}   # fmt: skip


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def draw(home: Home, before: list[str], engine: FakeEngine | None = None, *, live: bool) -> list[str]:
    """Draw two pictures as the page does; returns the ids that the next slider move replaces."""
    asked = {**USUAL, "count": 2}
    shown = studio.Drawn(tuple(before), live=True)
    *_, last = studio._draw(home, cast(Engine, engine or FakeEngine()), asked, shown, is_wanted=lambda: True, live=live)
    return list(last[3].ids)


def ids(home: Home) -> set[str]:
    return {picture.id for picture in gallery_page(home)}


def test_a_moving_slider_leaves_the_last_pictures_only(home: Home):
    draw(home, [], live=False)
    kept = ids(home)
    first = draw(home, [], live=True)
    small = [thumbnail_file(home, id) for id in first]
    second = draw(home, first, live=True)
    assert ids(home) == kept | set(second)
    assert len(second) == 2 and not set(second) & set(first)
    assert all(path is not None and not path.exists() for path in small), "their thumbnails went with them"
    assert not any(home.trash.rglob("*.png")), "nobody would look for them in the trash"
    draw(home, [], live=False)
    assert len(ids(home)) == 6, "a press replaces nothing"


def test_a_picture_that_somebody_deleted_meanwhile_stops_no_slider(home: Home):
    [one, other] = draw(home, [], live=True)
    trashed = trash_picture(home, one)
    last = draw(home, [one, other, "20250101-000000-000000-abcdef", "../nonsense"], live=True)
    assert ids(home) == set(last)
    assert trashed.exists(), "what is in the trash can be put back"


def test_a_drawing_that_fails_leaves_the_pictures_before_it(home: Home):
    before, engine = draw(home, [], live=True), FakeEngine()
    engine.error = ValueError("It does not fit.")
    with pytest.raises(Exception, match="does not fit"):
        draw(home, before, engine, live=True)
    assert ids(home) == set(before)


def test_what_a_person_should_know_is_shown_while_it_draws_and_stays(home: Home):
    engine = FakeEngine()
    engine.notices = ("It needs more memory.", "The memory ran out.")
    asked = USUAL
    shown = studio._draw(home, cast(Engine, engine), asked, studio.Drawn(), is_wanted=lambda: True)
    labels = [each[0]["label"] for each in shown]
    assert labels == [
        "Getting ready", "Getting ready · It needs more memory.", "Step 1 of 2 · It needs more memory.",
        "Getting ready · It needs more memory. · The memory ran out.",
        "Step 1 of 2 · It needs more memory. · The memory ran out.", "It needs more memory. The memory ran out."]


@pytest.mark.parametrize(
    "error", [BaseError("There is not enough memory."), NotFiniteError("No numbers."), torch.OutOfMemoryError("CUDA")]
)
def test_a_drawing_that_fails_leaves_the_page_at_rest(home: Home, error: Exception):
    engine, shown = FakeEngine(), []
    engine.error = error
    asked = USUAL
    with pytest.raises(Exception, match=str(error)):
        shown.extend(studio._draw(home, cast(Engine, engine), asked, studio.Drawn(), is_wanted=lambda: True))
    progress = [each[0]["busy"] for each in shown]
    assert (progress[0], progress[-1]) == ("true", "false")
    assert ids(home) == set()


def page(home: Home, engine: FakeEngine) -> studio._Events:
    return studio._Events(home, cast(Engine, engine), NAMES)


def values(strength: float = 1.0, **changes: Any) -> list[Any]:
    """What the page's controls say, in their order."""
    said = {**USUAL, "count": 2, "live": True, "search": "", "strength0": strength, **changes}
    return [said[name] for name in NAMES]


def test_stop_ends_a_drawing_between_two_steps_and_leaves_nothing(home: Home):
    engine = FakeEngine(lambda step: events.wanted.stop(SESSION.session_hash or "") if step == 3 else None)
    events = page(home, engine)
    before = draw(home, [], live=False)
    shown = list(events.draw_now(SESSION, *values(), studio.Drawn(tuple(before)), None))
    assert engine.steps == [1, 2, 3]
    assert ids(home) == set(before) and not list(home.gallery.glob(".*.png"))
    assert [picture["id"] for picture in shown[-1][1]["pictures"]] == before, "the unfinished ones are gone again"
    assert events.stop(SESSION)["busy"] == "false"
    engine.at_step = lambda _: None
    *_, last = events.draw_now(SESSION, *values(), studio.Drawn(), None)
    assert len(last[3].ids) == 2, "and the next one is drawn"


def test_a_moving_slider_draws_one_small_picture_and_the_set_when_it_rests(home: Home):
    engine = FakeEngine()
    events = page(home, engine)
    events.want(SESSION, True, (), (), 0.5)
    _, preview, *_, last = events.draw_live(SESSION, *values(0.5), studio.Drawn(), None)
    assert [(request.count, request.steps) for request in engine.requests] == [(1, 6), (2, 20)]
    assert [picture["id"] for picture in preview[1]["pictures"]] == [""], "nobody finds it in the gallery"
    assert last[3].live and ids(home) == set(last[3].ids)


def test_a_moving_slider_starts_from_the_same_picture_as_the_button(home: Home):
    engine, start = FakeEngine(), StartPicture(Image.new("RGB", (8, 8), "red"), 0.5)
    events = page(home, engine)
    events.want(SESSION, True, (), (), 0.5)
    *_, last = events.draw_live(SESSION, *values(0.5), studio.Drawn(), start)
    assert engine.starts == [start, start], "the small picture and the set"
    recipe = read_recipe(find_picture(home, last[3].ids[0]).path) or {}
    assert recipe["start"]["strength"] == 0.5


def test_the_last_pictures_are_replaced_even_where_the_page_has_not_heard_of_them(home: Home):
    events = page(home, FakeEngine())
    for strength in (0.5, 0.6):   # the second began before the first was shown
        events.want(SESSION, True, (), (), strength)
        *_, last = events.draw_live(SESSION, *values(strength), studio.Drawn(), None)
    assert ids(home) == set(last[3].ids)
    list(events.draw_now(SESSION, *values(), last[3], None))
    events.want(SESSION, True, (), (), 0.7)
    list(events.draw_live(SESSION, *values(0.7), studio.Drawn(), None))
    assert len(ids(home)) == 6, "a press replaces nothing, and is not replaced"


def test_a_newer_value_ends_the_drawing_of_the_one_before(home: Home):
    engine = FakeEngine(lambda step: events.want(SESSION, True, (), (), 0.7) if step == 2 else None)
    events = page(home, engine)
    events.want(SESSION, True, (), (), 0.5)
    assert len(list(events.draw_live(SESSION, *values(0.5), studio.Drawn(), None))) == 1
    assert engine.steps == [1, 2] and ids(home) == set()
    assert len(list(events.draw_live(SESSION, *values(0.5), studio.Drawn(), None))) == 1, "it is not even begun again"
    assert engine.steps == [1, 2]


def test_a_slider_that_draws_nothing_ends_nothing(home: Home):
    engine = FakeEngine(lambda _: events.want(SESSION, False, (), 0.7))
    events = page(home, engine)
    *_, last = events.draw_now(SESSION, *values(), studio.Drawn(), None)
    assert len(last[3].ids) == 2


def test_pages_wait_for_drawings_of_their_own():
    wanted = WantedDrawings()
    assert wanted.wants("a", 1), "a page that never asked waits for anything"
    wanted.want("a", 1)
    wanted.want("b", 2)
    assert (wanted.wants("a", 1), wanted.wants("a", 2), wanted.wants("b", 2)) == (True, False, True)
    assert wanted.rests("a", 1) and not wanted.wants_soon("a", 2)
    wanted.stop("a")
    assert not wanted.wants("a", 1) and not wanted.rests("a", 1)


def test_a_drawing_starts_from_what_was_dropped_and_painted_over(tmp_path: Path):
    Image.new("RGB", (32, 24), "red").save(tmp_path / "a.png")
    layer = Image.new("RGBA", (32, 24))
    layer.save(tmp_path / "empty.png")
    layer.paste((255, 255, 255, 255), (0, 0, 16, 24))
    layer.save(tmp_path / "half.png")
    editor = {"background": str(tmp_path / "a.png"), "layers": [str(tmp_path / "empty.png")], "composite": None}
    assert start_picture(None, 0.5) is None and start_picture({**editor, "background": None}, 0.5) is None
    whole = start_picture(editor, 0.5)
    assert whole and (whole.mask, whole.strength, whole.picture.size) == (None, 0.5, (32, 24))
    part = start_picture({**editor, "layers": [str(tmp_path / "half.png"), None]}, 1.0)
    assert part and part.mask and [part.mask.getpixel((x, 0)) for x in (15, 16)] == [255, 0]


def test_ten_thousand_adapters_are_a_short_list_with_a_search(home: Home, monkeypatch: pytest.MonkeyPatch):
    cards = [adapter_card(f"adapter {number}", "5" * 32 if number == 7 else "") for number in range(10_000)]
    monkeypatch.setattr(studio_picker, "list_adapters", lambda _: cards)
    monkeypatch.setattr(studio_picker, "recent_adapters", lambda _: ["adapter 9", "gone", "adapter 5000"])
    save_notes(home, "adapter 6000", star=True, tags=("good",))
    shown = studio_picker.adapter_picker(home, ["adapter 77"])
    assert [card["name"] for card in shown["cards"]][:5] == [
        "adapter 77", "adapter 9", "adapter 5000", "adapter 6000", "adapter 0"], "used, recent, starred, newest"
    assert [card["star"] for card in shown["cards"]][2:5] == ["", "★", ""]
    assert [card["name"] for card in studio_picker.adapter_picker(home, [], "good")["cards"]] == ["adapter 6000"]
    assert [card["pressed"] for card in shown["cards"]] == ["true", *["false"] * 24]
    assert shown["more"] == "9,975 more: search for one." and len(json.dumps(shown)) < 6000
    found = studio_picker.adapter_picker(home, [], "ADAPTER 7")["cards"]
    assert found[0]["name"] == "adapter 7" and len(found) == 24
    assert found[0]["picture"].endswith(f"{'5' * 32}-96.webp") and found[1]["picture"] == ""
    assert studio_picker.adapter_picker(home, [], "no such")["no_match"]


def adapter_card(name: str, thumbnail: str) -> AdapterCard:
    return AdapterCard(name=name, path=Path(), kind="lora", trigger="", subject="", base="", title="", family="",
                       bytes=0, created=NEWEST - timedelta(seconds=int(name.split()[1])), thumbnail=thumbnail,
                       pictures=0)   # fmt: skip
