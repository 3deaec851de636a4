"""Strengths by block through the drawing service: the picture, its recipe, and the view of what each block does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.draw import DrawCancelledError, DrawJob, check_job, draw
from atelier.app.services.draw_again import job_from_recipe
from atelier.app.services.engine import Engine
from atelier.app.services.studio.block_view import draw_block_view
from atelier.app.store.gallery import read_recipe, save_picture
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.mixes import MixEntry
from atelier.training.base_models.base_model import load
from atelier.training.sampling.sample import DrawRequest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with an adapter on two blocks of the embedded base."""
    home, model = open_home(tmp_path_factory.mktemp("blocks") / "home"), load("embedded")
    targets = [target for target in find_targets({"unet": model.unet}, "attention")
               if "mid_block" in target.name or "up_blocks.0.attentions.0" in target.name]
    adapters = create_adapters("lora", {"rank": 2}, targets)
    torch.manual_seed(0)
    with torch.no_grad():
        for each in adapters:
            for parameter in each.parameters():
                parameter.normal_(std=0.1)
    info = AdapterInfo(name="rex", trigger="zq", subject="fox", base="embedded", family=model.info.family)
    save_adapter(home.adapters / "rex.safetensors", adapters, info.to_metadata())
    return home


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def job(**blocks: float) -> DrawJob:
    named = {name.replace("_", "."): value for name, value in blocks.items()}
    entry = MixEntry("rex", 1.0, blocks=tuple(sorted(named.items())))
    return DrawJob(request=DrawRequest(prompt="a fox", steps=2), adapters=(entry,))


def drawn(home: Home, engine: Engine, what: DrawJob) -> tuple[bytes, dict]:
    [(picture, recipe)] = draw(engine, check_job(home, what))
    return picture.tobytes(), read_recipe(save_picture(home, picture, recipe)) or {}


def test_the_picture_s_file_has_the_strengths_and_is_drawn_again_with_them(home: Home, engine: Engine) -> None:
    plain, recipe = drawn(home, engine, job())
    assert "blocks" not in recipe["adapters"][0]
    half, recipe = drawn(home, engine, replace(job(mid=0.0, up_0_0=0.5)))
    assert recipe["adapters"][0]["blocks"] == {"mid": 0.0, "up.0.0": 0.5} and half != plain
    again, missing = job_from_recipe(home, recipe)
    assert not missing and again.adapters == job(mid=0.0, up_0_0=0.5).adapters
    assert drawn(home, engine, again)[0] == half


def test_curves_and_regions_are_in_the_picture_s_file_too(home: Home, engine: Engine) -> None:
    entry = MixEntry("rex", 1.0, curve=(0.0, 1.0), region=("10", "00"), blocks=(("mid", 0.5),))
    one, recipe = drawn(home, engine, replace(job(), adapters=(entry,)))
    again, _ = job_from_recipe(home, recipe)
    assert again.adapters == (entry,) and drawn(home, engine, again)[0] == one


def test_each_tile_is_the_picture_without_a_block_or_with_it_alone(home: Home, engine: Engine) -> None:
    tiles = {tile.block: tile for tile in draw_block_view(home, engine, job(), "rex")}
    assert list(tiles) == ["", "mid", "up.0.0"] and tiles["mid"].difference > 0
    alone = {tile.block: tile for tile in draw_block_view(home, engine, job(), "rex", alone=True)}
    assert tiles["mid"].picture.tobytes() == alone["up.0.0"].picture.tobytes(), "of two blocks"
    bare, _ = drawn(home, engine, replace(job(), adapters=()))
    assert alone[""].picture.tobytes() == bare


def test_what_has_no_blocks_is_said(home: Home, engine: Engine) -> None:
    with pytest.raises(HomeError, match="does not change a block 'midd'"):
        check_job(home, job(midd=1.0))
    for adapters in ((), (MixEntry("rex", 0.0),)):
        with pytest.raises(HomeError, match="not in this drawing"):
            next(draw_block_view(home, engine, replace(job(), adapters=adapters), "rex"))
    with pytest.raises(DrawCancelledError):
        next(draw_block_view(home, engine, job(), "rex", is_wanted=lambda: False))
