"""The Studio page: what a moving slider leaves behind."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.store.gallery import gallery_page, thumbnail_file, trash_picture
from atelier.app.store.home import Home, open_home
from atelier.app.web.pages import studio
from atelier.training.base_models.base_info import BaseError
from atelier.training.sampling.decode import NotFiniteError
from atelier.training.sampling.sample import DrawRequest


class FakeEngine:
    """Draws black pictures, or fails."""

    error: Exception | None = None
    notices: tuple[str, ...] = ()

    def draw(
        self, _base: str, _adapters: Any, request: DrawRequest, *_: Any, callbacks: DrawCallbacks, **__: Any
    ) -> list[Image.Image]:
        if self.error:
            raise self.error
        for notice in self.notices:
            assert callbacks.on_notice and callbacks.on_step
            callbacks.on_notice(notice)
            callbacks.on_step(1, 2)
        return [Image.new("RGB", (1, 1)) for _ in range(request.count)]


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def draw(home: Home, before: list[str], engine: FakeEngine | None = None, *, live: bool) -> list[str]:
    """Draw two pictures as the page does; returns the ids that the next slider move replaces."""
    values = {f.name: f.default for f in fields(DrawRequest)}
    asked = {**values, "prompt": "a fox", "count": 2, "names": "", "base": "", "keep_seed": True}
    *_, last = studio._draw(home, cast(Engine, engine or FakeEngine()), asked, before, live=live)
    return last[3]


def ids(home: Home) -> set[str]:
    return {picture.id for picture in gallery_page(home)}


def test_a_moving_slider_leaves_the_last_pictures_only(home: Home):
    assert draw(home, [], live=False) == [], "what a press drew is nobody's to replace"
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
    values = {f.name: f.default for f in fields(DrawRequest)}
    asked = {**values, "prompt": "a fox", "names": "", "base": "", "keep_seed": True}
    labels = [each[0]["label"] for each in studio._draw(home, cast(Engine, engine), asked, [])]
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
    values = {f.name: f.default for f in fields(DrawRequest)}
    asked = {**values, "prompt": "a fox", "names": "", "base": "", "keep_seed": True}
    with pytest.raises(Exception, match=str(error)):
        shown.extend(studio._draw(home, cast(Engine, engine), asked, []))
    progress = [each[0]["busy"] for each in shown]
    assert (progress[0], progress[-1]) == ("true", "false")
    assert ids(home) == set()
