"""The Mix Lab for two: the pad, the nine pictures, methods of a content and a style, and its addresses."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.fusion.break_for_make_halves import combine_halves, scale_halves
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.textual_inversion import TextualInversion
from atelier.app.services import fuse
from atelier.app.services.engine import Engine
from atelier.app.services.fuse import fuse_mix
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import find_adapter
from atelier.app.store.mixes import MixEntry, SavedMix
from atelier.app.store.textual_inversions import keep_textual_inversion
from atelier.app.web.pages import mix, mix_pad
from atelier.app.web.server import _redirect_old_addresses
from atelier.training.base_models.base_model import load

PROMPT = "a ink emoji of a rex fox"


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


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(fuse, "LIVE_STEPS", 2)
    return Engine()


@pytest.mark.parametrize(("text", "place"), [
    ("0.5,1.25", (0.5, 1.25)), ("0,2", (0.0, 2.0)), ("-1,9", (0.0, 2.0)), ("nan,1", (0.0, 1.0)), ("", (1.0, 1.0)),
    ("1", (1.0, 1.0)), ("a,b", (1.0, 1.0)), ("1,2,3", (1.0, 1.0)),
])   # fmt: skip
def test_a_place_of_the_pad_is_two_strengths_whatever_is_sent(text: str, place: tuple[float, float]):
    assert mix_pad.strengths_at(text) == place


def test_every_notch_of_the_pad_means_itself():
    pad = mix_pad.strength_pad((MixEntry("rex", 0.5), MixEntry("ink", 1.75)))
    cells = [cell for row in pad["rows"] for cell in row["cells"]]
    assert len(cells) == 81
    assert {cell["id"] for cell in cells if cell["pressed"] == "true"} == {"0.5,1.75"}
    assert len({mix_pad.strengths_at(cell["id"]) for cell in cells}) == 81
    assert mix_pad.strengths_at(pad["rows"][0]["cells"][0]["id"]) == (0.0, 2.0), "up is more of the second"
    assert mix_pad.strength_pad((MixEntry("rex"),))["rows"] == []


def test_the_corners_are_neither_one_the_other_and_both():
    cells = mix_pad.cells_at(1.5, 0.5)
    assert [cells[i] for i in (0, 2, 6, 8)] == [(0, 0), (1.5, 0), (0, 0.5), (1.5, 0.5)]
    assert len(cells) == 9


def of_both(first: float = 1.0, second: float = 1.0, method: str = "break-for-make") -> SavedMix:
    return SavedMix(entries=(MixEntry("rex", first), MixEntry("ink", second)), method=method, prompt=PROMPT, seed=3)


def pictures_of(home: Home, engine: Engine, mix: SavedMix) -> list[str]:
    return [cell["src"] for cell in mix_pad.nine_pictures(home, engine, mix)["cells"]]


def pixels(source: str) -> np.ndarray:
    """Of a data address: [height, width, 3], 0 … 255."""
    return np.asarray(Image.open(BytesIO(b64decode(source.partition(",")[2])))).astype(int)


def test_nine_pictures_from_one_seed(home: Home, engine: Engine):
    pictures = pictures_of(home, engine, of_both())
    assert len(pictures) == 9
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    assert len(set(pictures)) > 5
    [base] = set(pictures_of(home, engine, of_both(0.0, 0.0, "sum")))
    assert abs(pixels(base) - pixels(pictures[0])).max() <= 16, "the base alone, and one seed: equal but for JPEG"
    assert abs(pixels(base) - pixels(pictures[8])).max() > 64
    with pytest.raises(ValueError, match="exactly two"):
        pictures_of(home, engine, replace(of_both(), entries=of_both().entries[:1]))
    with pytest.raises(ValueError, match="can't be drawn at once"):
        pictures_of(home, engine, of_both(method="ties"))


def test_the_nine_follow_the_words_of_textual_inversions(home: Home, engine: Engine):
    """With none of either adapter, what is left is the base model and the prompt's words."""
    mix = replace(of_both(0.0, 0.0, "sum"), prompt="an emoji of blorp")
    plain = pictures_of(home, engine, mix)[0]
    width = load("embedded", "cpu").text_encoders[0].get_input_embeddings().weight.shape[1]
    word = TextualInversion("blorp", "embedded", {"text_encoder": torch.full((2, width), 0.5)})
    keep_textual_inversion(home, word, "blorp")
    assert pictures_of(home, engine, mix)[0] != plain


def test_two_halves_become_one_adapter_at_their_strengths(home: Home, engine: Engine):
    card, error = fuse_mix(home, engine, of_both(0.5, 1.25), "both")
    rex, ink, both = (load_adapter(find_adapter(home, name).path) for name in ("rex", "ink", "both"))
    expected = scale_halves(combine_halves(rex, ink), content=0.5, style=1.25).tensors()
    assert all(torch.equal(value, expected[key]) for key, value in both.tensors().items())
    assert (card.name, error) == ("both", pytest.approx(0.0, abs=1e-5))


def test_the_address_picks_both_and_old_addresses_lead_here(home: Home):
    _, _, _, _, _, entries, *_ = mix._on_load(home, {"content": "rex", "style": "ink"})
    assert entries == (MixEntry("rex", 1.0), MixEntry("ink", 0.75))
    assert mix._on_load(home, {"content": "rex", "style": "gone"})[5] == (MixEntry("rex", 1.0),)
    app = FastAPI()
    _redirect_old_addresses(app)
    answer = TestClient(app).get("/fusion?picture=a%20b", follow_redirects=False)
    assert answer.headers["location"] == "/mix?picture=a%20b"


def test_pressing_the_pad_moves_both_sliders_and_swapping_changes_their_places(home: Home, engine: Engine):
    events = mix._Events(home, engine)
    values = [of_both().entries, "sum", PROMPT, 3, 1.0, 0.5, 0, 0, 0]
    pressed = SimpleNamespace(_data={"action": "set", "id": "0.25,1.5"})
    *sliders, pad = events.press_pad(pressed, *values)   # type: ignore[arg-type]
    assert [slider.value for slider in sliders[:2]] == [0.25, 1.5]
    assert pad["label"] == "rex 0.25, ink 1.5"
    _, _, entries, *_ = events.swap("", *values)
    assert entries == (MixEntry("ink", 0.5), MixEntry("rex", 1.0))
