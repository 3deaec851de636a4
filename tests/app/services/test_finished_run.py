"""A run afterwards: its steps are drawn, kept and averaged, and what can't be done is said in a sentence."""

# pyright: reportArgumentType=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import load_adapter, read_header
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.jobs.jobs import new_run, run_status
from atelier.app.services.finished_run import (
    draw_samples,
    draw_step_grid,
    find_step_files,
    first_prompt,
    keep_average,
    keep_step,
    read_step_grid,
)
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.library import find_adapter
from atelier.training.config.events import Finished, Preparing, Previewed, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.snapshots import write_snapshot

CONFIG = TrainConfig(name="rex", subject="fox", trigger="zorp", steps=30)


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def weights(seed: int):
    adapters = create_adapters("lora", {"rank": 2}, [Spec("unet.layer", (3, 4))])
    torch.manual_seed(seed)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    return adapters


@pytest.fixture
def run(home: Home) -> RunFolder:
    """A finished run of 30 steps with three snapshots and one preview."""
    run = new_run(home, CONFIG)
    for step in (10, 20, 30):
        write_snapshot(run.path, step, weights(step))
    Image.new("RGB", (32, 32), "red").save(run.path / "previews" / "000020-0.png")
    for event in (Preparing("x"), Stepped(30, 30, 0.1, 0.0, 1e-3, 0.1),
                  Previewed(20, "a zorp fox", "previews/000020-0.png"), Finished(30, "gone.safetensors", 1.0)):
        run.append(event)
    return run


class Engine:
    """Draws one colour, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, str, int]] = []

    def draw(self, base: str, adapters: Any, request: Any) -> list[Image.Image]:
        [(path, entry)] = adapters
        self.asked.append((path.stem, entry.strength, request.prompt, request.seed))
        return [Image.new("RGB", (16, 16), "blue")] * request.count


def test_a_grid_has_every_step_at_every_strength_and_stays(home, run):
    engine = Engine()
    grids = list(draw_step_grid(home, engine, run.id, strengths=(0.5, 1.0)))
    assert [len(grid.cells) for grid in grids] == [1, 2, 3, 4, 5, 6] and grids[-1].is_complete
    assert [(name, strength) for name, strength, _, _ in engine.asked] == [
        (f"{step:06d}", strength) for step in (10, 20, 30) for strength in (0.5, 1.0)]   # fmt: skip
    assert len({(prompt, seed) for _, _, prompt, seed in engine.asked}) == 1
    assert "zorp fox" in engine.asked[0][2]
    assert all((run.path / cell.path).is_file() for cell in grids[-1].cells)
    assert read_step_grid(home, run.id) == grids[-1]


def test_chosen_steps_and_prompt_are_drawn(home, run):
    engine = Engine()
    [grid] = draw_step_grid(home, engine, run.id, " a boat ", (1.0,), [20])
    assert engine.asked == [("000020", 1.0, "a boat", 7)] and grid.steps == (20,)


@pytest.mark.parametrize(("steps", "strengths", "words"), [
    ([15], (1.0,), "Step 15 was not saved. The saved steps are: 10, 20, 30."), ([], (1.0,) * 100, "at most 200")])
def test_a_grid_that_can_not_be_drawn_is_refused(home, run, steps, strengths, words):
    with pytest.raises(HomeError, match=words):
        list(draw_step_grid(home, Engine(), run.id, "", strengths, steps))
    assert read_step_grid(home, run.id) is None


def test_a_damaged_grid_is_no_grid(home, run):
    (run.path / "grid.json").write_text('{"prompt": 1, "cells": [[1]]}')
    assert read_step_grid(home, run.id) is None


def test_a_kept_step_is_an_adapter_of_its_own(home, run):
    card = keep_step(home, run.id, 20)
    assert card.name == "rex-step-20" and (card.trigger, card.subject) == ("zorp", "fox")
    info = read_header(card.path).info
    assert (info.best_step, info.run) == (20, ""), "a resumed run writes over the file that names it"
    assert info.thumbnail.startswith("data:image/jpeg")
    assert "pictures" not in info.recipe
    kept, snapshot = load_adapter(card.path).tensors(), load_adapter(find_step_files(home, run.id)[20]).tensors()
    assert all(torch.equal(kept[key], value) for key, value in snapshot.items())
    with pytest.raises(HomeError, match="rex-step-20"):
        keep_step(home, run.id, 20)
    assert keep_step(home, run.id, 20, "other").name == "other"
    with pytest.raises(HomeError, match="not saved"):
        keep_step(home, run.id, 11)


def test_an_average_is_kept_from_a_step_on(home, run):
    card = keep_average(home, run.id, 20)
    assert card.name == "rex-average-20-30"
    mean = load_adapter(card.path).tensors()
    both = [weights(step).tensors() for step in (20, 30)]
    for key, value in mean.items():
        torch.testing.assert_close(value, (both[0][key] + both[1][key]) / 2)
    with pytest.raises(HomeError, match="needs two"):
        keep_average(home, run.id, 30)
    assert find_adapter(home, card.name)


def test_samples_join_the_previews_of_a_finished_run(home, run):
    engine = Engine()
    first = draw_samples(home, engine, run.id, "a boat", count=2)
    second = draw_samples(home, engine, run.id, "")
    assert engine.asked[0][:3] == ("000030", 1.0, "a boat"), "the file is gone, so the last snapshot is used"
    state = run_status(home, run.id)
    assert state.state == "done" and state.previews[1:] == [*first, *second]
    assert len({event.path for event in [*first, *second]}) == 3
    assert all((run.path / event.path).is_file() for event in [*first, *second])


def test_a_run_without_saved_steps_says_so(home):
    run = new_run(home, CONFIG)
    for action in (lambda: list(draw_step_grid(home, Engine(), run.id)), lambda: keep_step(home, run.id, 1)):
        with pytest.raises(HomeError, match="no saved steps"):
            action()
    with pytest.raises(HomeError, match="Neither the adapter"):
        draw_samples(home, Engine(), run.id, "")
    with pytest.raises(HomeError, match="does not exist"):
        find_step_files(home, "../rex")


def test_the_first_prompt_is_that_of_the_previews():
    assert first_prompt(TrainConfig(name="rex", subject="fox", preview_prompts="\n{trigger} {subject} at sea\nb")) == (
        "rex fox at sea")   # fmt: skip
