"""Snapshots: which steps of a run stay as files, and that each is the adapter of its step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.config.events import Measured, Saved, StoppedEarly
from atelier.training.config.run_folder import RunFolder
from atelier.training.loop.snapshots import drop_snapshots, find_snapshots, snapshot_steps, write_snapshot

from .test_training_loop import MAX_EFFECT, NOBODY, Script, but, start, told, weights


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 3), (100, 8), (1000, 64), (5, 64)])
def test_steps_are_spread_over_the_whole_run_and_end_with_it(steps, count):
    found = snapshot_steps(steps, count)
    assert len(found) == min(steps, count) and found[-1] == steps and found[0] >= 1
    gaps = [after - before for before, after in zip([0, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_a_snapshot_is_the_adapter_of_its_step(tmp_path):
    adapters = create_adapters("lora", {"rank": 2}, [Spec("unet.layer", (3, 4))])
    write_snapshot(tmp_path, 7, adapters)
    again = load_adapter(find_snapshots(tmp_path)[7])
    assert all(torch.equal(again.tensors()[key], value) for key, value in adapters.tensors().items())


def test_those_that_a_person_saved_stay(tmp_path):
    adapters = create_adapters("lora", {"rank": 2}, [Spec("unet.layer", (3, 4))])
    for step, saved in ((1, False), (2, True), (3, False)):
        write_snapshot(tmp_path, step, adapters, saved=saved)
    (tmp_path / "snapshots" / "notes.safetensors").touch()
    drop_snapshots(tmp_path, {3})
    assert list(find_snapshots(tmp_path)) == [2, 3]
    assert find_snapshots(tmp_path / "nothing") == {}


def test_a_run_leaves_the_steps_on_schedule(tmp_path):
    training = start(but(snapshots=3), tmp_path)
    seen = {}
    for _ in training.events(NOBODY):
        seen[training.step] = weights(training.recipe.adapters)
    assert list(find_snapshots(tmp_path)) == [2, 4, 6]
    for step, path in find_snapshots(tmp_path).items():
        assert torch.equal(weights(load_adapter(path)), seen[step])


def test_a_step_is_saved_when_asked_for(tmp_path):
    training = start(but(snapshots=0), tmp_path)
    events = Script(tmp_path, (3, "save", "")).play(training)
    assert list(find_snapshots(tmp_path)) == [3]
    assert [told(event) for event in events if isinstance(event, Saved)] == [("Saved", 3)]


def measuring(gains: dict[int, float], auc: float = 1.0):
    return lambda weights, step: Measured(step, 1.0, gains[step], auc, 0.0, [], 0)


def test_a_run_that_learns_by_heart_stops_and_keeps_the_best_measured_step(tmp_path):
    training = start(but(steps=8, validate_every=1, snapshots=1), tmp_path)
    gains = {1: 0.1, 2: 0.2, 3: 0.5, 4: 0.2, 5: 0.1, 6: 0.2, 7: 0.1, 8: 0.0}
    training.recipe = replace(training.recipe, measure=measuring(gains))
    events, at_step = [], {}
    for event in training.events(NOBODY):
        events.append(event)
        at_step[training.step] = weights(training.recipe.adapters)
    [stopped] = [event for event in events if isinstance(event, StoppedEarly)]
    assert (stopped.step, stopped.best_step) == (5, 3) and "Step 3 is saved." in stopped.reason
    assert training.result_step == 3 and torch.equal(weights(training.result), at_step[3])
    assert list(find_snapshots(tmp_path)) == [3]


def test_a_run_that_may_not_stop_goes_to_its_end(tmp_path):
    training = start(but(validate_every=1, stop_when="never"), tmp_path)
    training.recipe = replace(training.recipe, measure=measuring(dict.fromkeys(range(1, 7), 0.0) | {1: 0.9}))
    events = list(training.events(NOBODY))
    assert training.step == MAX_EFFECT.steps and not any(isinstance(event, StoppedEarly) for event in events)


def test_a_resumed_run_remembers_what_was_measured(tmp_path):
    config = but(steps=8, validate_every=1, snapshots=8, checkpoint_every=4)
    gains = dict(zip(range(1, 9), (0.5, 0.2, 0.45, 0.4, 0.24, 0.2, 0.1, 0.0), strict=True))
    first = start(config, tmp_path)
    first.recipe = replace(first.recipe, measure=measuring(gains))
    for event in first.events(NOBODY):
        RunFolder(tmp_path).append(event)
        if isinstance(event, Saved):
            break
    second = start(config, tmp_path, seed=1)
    second.recipe = replace(second.recipe, measure=measuring(gains))
    assert second.resume()
    [stopped] = [event for event in second.events(NOBODY) if isinstance(event, StoppedEarly)]
    assert (stopped.step, stopped.best_step) == (6, 1)
