"""The Mix Lab: the pad, the nine pictures, and saving what stands on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.fusion.break_for_make_halves import combine_halves, scale_halves
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.engine import Engine
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import find_adapter
from atelier.app.text.mix import METHODS
from atelier.app.web.pages import mix
from atelier.training.base_models.base_model import load
from atelier.training.runs import save_adapter as keep


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A content and a style as if they had been taught."""
    folder = tmp_path_factory.mktemp("halves")
    targets = find_targets({"unet": load("embedded", "cpu").unet}, "attention")
    for name, role in (("rex", "content"), ("ink", "style")):
        adapters = create_adapters("split", {"rank": 4, "role": role}, targets)
        with torch.no_grad():
            for adapter in adapters:
                adapter.trainable_half(role).normal_(std=0.2)   # type: ignore[operator]
        known = {"trigger": name, "subject": "fox", "base": "embedded", "family": "embedded", "title": "it"}
        save_adapter(folder / f"{name}.safetensors", adapters, {f"atelier.{k}": v for k, v in known.items()})
    return folder


@pytest.fixture
def home(own_home: Path, halves: Path) -> Home:
    home = open_home(own_home)
    home.adapters.mkdir(parents=True, exist_ok=True)
    for path in halves.iterdir():
        (home.adapters / path.name).write_bytes(path.read_bytes())
    return home


@pytest.mark.parametrize(("text", "place"), [
    ("0.5,1.25", (0.5, 1.25)), ("0,2", (0.0, 2.0)), ("-1,9", (0.0, 2.0)), ("nan,1", (0.0, 1.0)), ("", (1.0, 0.75)),
    ("1", (1.0, 0.75)), ("a,b", (1.0, 0.75)), ("1,2,3", (1.0, 0.75)),
])   # fmt: skip
def test_a_place_of_the_pad_is_two_strengths_whatever_is_sent(text: str, place: tuple[float, float]):
    assert mix.strengths_at(text) == place


def test_every_notch_of_the_pad_means_itself():
    pad = mix._pad(0.5, 1.75)
    cells = [cell for row in pad["rows"] for cell in row["cells"]]
    assert len(cells) == 81
    assert {cell["id"] for cell in cells if cell["pressed"] == "true"} == {"0.5,1.75"}
    assert len({mix.strengths_at(cell["id"]) for cell in cells}) == 81
    assert mix.strengths_at(pad["rows"][0]["cells"][0]["id"]) == (0.0, 2.0), "up is more style"


def test_the_corners_are_neither_content_style_and_both():
    cells = mix.cells_at(1.5, 0.5)
    assert [cells[i] for i in (0, 2, 6, 8)] == [(0, 0), (1.5, 0), (0, 0.5), (1.5, 0.5)]
    assert len(cells) == 9


def test_the_page_knows_every_method_that_moves_live():
    assert set(METHODS) == set(mix.UNTRAINED_METHODS)


def test_nine_pictures_from_one_seed(home: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mix, "DRAW_STEPS", 2)
    engine = Engine()
    prompt = mix._prompt(find_adapter(home, "rex"), find_adapter(home, "ink"))
    assert prompt == mix._suggest_prompt(home, "rex", "ink")
    assert prompt == "a ink emoji of a rex fox"
    grid = mix._grid(home, engine, mix.Choice("rex", "ink", "break-for-make", (1.0, 1.0)), prompt, 3)
    pictures = [cell["src"] for cell in grid["cells"]]
    assert len(pictures) == 9
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    assert len(set(pictures)) > 5
    assert grid["cells"][8]["label"] == "content 1, style 1"
    off = mix._grid(home, engine, mix.Choice("rex", "ink", "sum", (0.0, 0.0)), prompt, 3)
    assert {cell["src"] for cell in off["cells"]} == {pictures[0]}, "no strength is the base alone, and one seed"
    assert mix._grid(home, engine, mix.Choice("rex", None, "sum", (1.0, 1.0)), prompt, 3) == {"cells": []}


def test_saving_bakes_the_pads_strengths_in(home: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keep, "draw_preview", lambda *_: Image.new("RGB", (8, 8)))
    said = mix._save(home, mix.Choice("rex", "ink", "break-for-make", (0.5, 1.25)), "both")
    assert said == {"name": "both", "href": "/library?adapter=both"}
    rex, ink, both = (load_adapter(find_adapter(home, name).path) for name in ("rex", "ink", "both"))
    expected = scale_halves(combine_halves(rex, ink), content=0.5, style=1.25).tensors()
    assert all(torch.equal(value, expected[key]) for key, value in both.tensors().items())
    with pytest.raises(ValueError, match="is already used"):
        mix._save(home, mix.Choice("rex", "ink", "sum", (1.0, 1.0)), "both")
    with pytest.raises(ValueError, match="Choose a content"):
        mix._save(home, mix.Choice("rex", None, "sum", (1.0, 1.0)), "other")


def test_the_address_picks_both(home: Home):
    content, style = mix._on_load(home, {"content": "rex", "style": "gone"})
    shown: list[Any] = [content, style]
    assert [one.value for one in shown] == ["rex", None]
    assert {name for name, _ in shown[0].choices} == {"rex", "ink"}
