"""Grids: what each axis changes, cells that come one by one and go on after a stop, votes and their ranking."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from atelier.app.services.draw import DrawJob
from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.services.grid import (
    Axis,
    Grid,
    _with_value,
    draw_grid,
    list_grids,
    new_grid,
    parse_axis,
    read_grid,
    vote,
)
from atelier.app.services.grid_picture import SIDE, cell_rows, labelled_picture
from atelier.app.services.grid_ranking import next_pair, rank_cells, rank_values, wilson_score
from atelier.app.store.gallery import find_picture, gallery_page, read_recipe, save_picture
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.mixes import MixEntry
from atelier.training.sampling.sample import DrawRequest

RECIPE = {"prompt": "a fox in snow", "negative": "", "seed": 7, "steps": 4, "guidance": 3.0, "sampler": "ddim",
          "prompt_syntax": "plain", "base": "embedded", "family": "embedded", "width": 64, "height": 64,
          "adapters": []}   # fmt: skip


class FakeEngine:
    """Draws a picture whose colour is the seed, or fails at one."""

    def __init__(self, bad_seed: int = -1) -> None:
        self.requests: list[DrawRequest] = []
        self.bad_seed = bad_seed

    def draw(self, _base: str, _adapters: Any, request: DrawRequest, *_: Any, callbacks: DrawCallbacks, **__: Any):
        if callbacks.on_step:
            callbacks.on_step(1, request.steps)
        if request.seed == self.bad_seed:
            raise HomeError("It does not fit.")
        self.requests.append(request)
        return [Image.new("RGB", (8, 8), (request.seed, 0, 0))]


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


@pytest.fixture
def picture(home: Home) -> str:
    return save_picture(home, Image.new("RGB", (64, 64)), RECIPE).stem


def drawn(home: Home, grid: Grid, engine: FakeEngine | None = None) -> Grid:
    *_, grid = [grid, *draw_grid(home, cast(Engine, engine or FakeEngine()), grid.id)]
    return grid


def test_every_cell_is_a_picture_with_its_own_settings(home: Home, picture: str) -> None:
    axes = [parse_axis("seed", "1, 2"), parse_axis("prompt", "fox | owl | cat"), parse_axis("steps", "3")]
    grid = new_grid(home, picture, axes)
    assert len(grid.cells) == 6 and not grid.is_complete and list_grids(home) == [grid]
    grid = drawn(home, grid)
    recipes = [read_recipe(find_picture(home, cell.picture).path) or {} for cell in grid.cells]
    assert [(recipe["seed"], recipe["prompt"], recipe["steps"]) for recipe in recipes] == [
        (seed, f"a {what} in snow", 3) for seed in (1, 2) for what in ("fox", "owl", "cat")]   # fmt: skip
    assert recipes[0]["grid"] == {"Seed": "1", "Prompt: replace words": "fox", "Steps": "3"}
    assert grid.is_complete and read_grid(home, grid.id) == grid
    assert [(block, label, len(cells)) for block, label, cells in cell_rows(grid)] == [
        ("3", "fox", 2), ("3", "owl", 2), ("3", "cat", 2)]   # fmt: skip
    shown = labelled_picture(home, grid)
    assert shown.width > 2 * SIDE and shown.height > 3 * SIDE
    colours = {colour for _, colour in shown.getcolors(1 << 24)}   # type: ignore[union-attr]
    assert {(1, 0, 0), (2, 0, 0)} <= colours, "both seeds' cells are in it"


def test_a_grid_goes_on_where_it_was_stopped_and_draws_no_cell_twice(home: Home, picture: str) -> None:
    grid, engine = new_grid(home, picture, [parse_axis("seed", "1..4:4")]), FakeEngine(bad_seed=2)
    first = next(draw_grid(home, cast(Engine, engine), grid.id))
    assert [bool(cell.picture) for cell in first.cells] == [True, False, False, False]
    assert not list(draw_grid(home, cast(Engine, engine), grid.id, lambda: False)), "stopped between two steps"
    grid = drawn(home, grid, engine)
    assert [request.seed for request in engine.requests] == [1, 3, 4]
    assert grid.cells[1].problem == "It does not fit." and grid.is_complete
    assert len(gallery_page(home)) == 4, "the first picture and three cells"


@pytest.mark.parametrize(("kind", "text", "why"), [
    ("colour", "red", "can't change in a grid"), ("seed", " , ", "has no values"), ("seed", "0..9:9999", "at most 400"),
    ("seed", ",".join(map(str, range(401))), "at most 400"), ("seed", "x", "seed is 'x'"),
    ("sampler", "magic", "sampler is"), ("prompt", "owl | cat", "does not contain 'owl'"),
    ("strength", "1", "not drawn with any adapter"), ("adapter", "rex", "no adapter named"),
    ("method", "magic", "no fusion method"), ("checkpoint", "run:1", "does not exist"),
])  # fmt: skip
def test_what_can_not_be_varied_is_said_before_anything_is_drawn(
    home: Home, picture: str, kind: str, text: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        new_grid(home, picture, [parse_axis(kind, text)])
    assert list_grids(home) == []


def test_a_grid_needs_axes_and_its_picture(home: Home, picture: str) -> None:
    for axes in ([], [Axis("seed", ("1",))] * 4):
        with pytest.raises(HomeError, match="one to three"):
            new_grid(home, picture, axes)
    with pytest.raises(HomeError, match="no longer in the gallery"):
        new_grid(home, "gone", [Axis("seed", ("1",))])
    for id in ("../gallery/x", "20250101-000000-000000", "20250101-000000-000000/../x"):
        with pytest.raises(HomeError, match="no such grid"):
            read_grid(home, id)


def test_votes_are_ranked_by_how_sure_they_are(home: Home, picture: str) -> None:
    grid = new_grid(home, picture, [Axis("seed", ("1", "2", "3")), Axis("steps", ("2", "3"))])
    assert next_pair(grid, random.Random(0)) is None, "nothing is drawn"
    grid = drawn(home, grid)
    for better, worse in ((0, 1), (0, 2), (0, 3), (4, 5)):
        grid = vote(home, grid.id, better, worse)
    assert [number for number, _ in rank_cells(grid)][:2] == [0, 4], "three of three before one of one"
    assert [(each.name, each.wins, each.votes) for each in rank_values(grid, 0)] == [
        ("1", 2, 2), ("2", 0, 2), ("3", 0, 0)], "0 against 1 is about the steps alone"   # fmt: skip
    with pytest.raises(HomeError):
        vote(home, grid.id, 0, 6)


def test_pairs_meet_once_and_those_compared_least_come_first(home: Home, picture: str) -> None:
    grid, dice = drawn(home, new_grid(home, picture, [Axis("seed", ("1", "2", "3", "4"))])), random.Random(0)
    seen: list[frozenset[int]] = []
    while pair := next_pair(grid, dice):
        seen.append(frozenset(pair))
        grid = replace(grid, votes=(*grid.votes, pair))
    assert len(seen) == len(set(seen)) == 6
    assert not seen[0] & seen[1], "the second pair is of the two that were not compared yet"


def test_wilsons_interval_is_that_of_the_literature() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263 → 0.2553; 15 of 148 → 0.0624; 0 of 20 → 0; 1 of 29 → 0.0061."""
    for wins, votes, low in ((81, 263, 0.2553), (15, 148, 0.0624), (0, 20, 0.0), (1, 29, 0.0061)):
        assert wilson_score(wins, votes) == pytest.approx(low, abs=5e-5)


def test_votes_of_several_pages_at_once_are_all_kept(home: Home, picture: str) -> None:
    grid = new_grid(home, picture, [parse_axis("seed", "1, 2")])
    with ThreadPoolExecutor(4) as pages:
        list(pages.map(lambda _: vote(home, grid.id, 0, 1), range(40)))
    assert len(read_grid(home, grid.id).votes) == 40


def test_a_block_is_left_out_or_weakened_in_a_cell(home: Home) -> None:
    entries = (MixEntry("rex", blocks=(("up.0.0", 0.5),)), MixEntry("ink"))
    job = DrawJob(request=DrawRequest(prompt="fox"), adapters=entries)
    axis = parse_axis("block", "none, mid, up.0.0=2", "rex")
    found = [_with_value(home, job, axis, value).adapters for value in axis.values]
    assert [dict(rex.blocks) for rex, _ in found] == [{"up.0.0": 0.5}, {"mid": 0.0, "up.0.0": 0.5}, {"up.0.0": 2.0}]
    assert all(ink == MixEntry("ink") for _, ink in found)


@pytest.mark.parametrize("strength", ["nan", "inf", "1.2.3", "..", "1.2.3..4:3"])
def test_a_strength_that_is_no_number_is_named(home: Home, strength: str) -> None:
    job = DrawJob(request=DrawRequest(prompt="fox"), adapters=(MixEntry("rex"),))
    axis = parse_axis("strength", strength)
    with pytest.raises(HomeError, match=re.escape(f"{strength!r} is not a number.")):
        _with_value(home, job, axis, axis.values[0])
