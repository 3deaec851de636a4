"""Time estimates: from the steps of earlier trainings, scaled by what a step does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atelier.app.services.create import time_estimate
from atelier.app.services.create.time_estimate import (
    estimate_time,
    expected_time,
    run_timing,
    save_estimate,
    saved_estimate,
)
from atelier.app.store.home import Home, open_home
from atelier.training.config import events
from atelier.training.config.events import Event, Finished, Paused, Preparing, Resumed, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig

CONFIG = TrainConfig(name="rex", pictures="x", steps=11, batch=2, prior_count=0)


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def past_run(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, seconds: float, *between: Event,
    config: TrainConfig = CONFIG,
) -> RunFolder:
    """A run that prepared for 6 s and then took ``seconds`` a step, and 1 s after the last."""
    run, clock = RunFolder.create(home.runs / name, config), [100.0]
    monkeypatch.setattr(events.time, "time", lambda: clock[0])

    def append(event: Event, after: float) -> None:
        clock[0] += after
        run.append(event)

    append(Preparing("Loading"), 0)
    for step in range(1, config.steps + 1):
        append(Stepped(step, config.steps, 0.1, 0.0, 1e-3, seconds), 6.0 if step == 1 else seconds)
    for event in between:
        append(event, 1)
    append(Finished(config.steps, "rex.safetensors", 0.0), 1)
    return run


def test_an_estimate_scales_with_steps_and_pictures(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert estimate_time(home, CONFIG) is None
    past_run(home, monkeypatch, "a", 2.0)
    found = estimate_time(home, TrainConfig(**{**CONFIG.to_dict(), "steps": 100, "batch": 4}))
    # 6 s before and 1 s after; a step is 2 s for 2 pictures and what takes as long as 2 more, so that 4 take 3 s.
    assert found and found.seconds == pytest.approx(7 + 100 * 3) and found.runs == 1


def test_what_is_alike_counts_and_the_median_of_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("a", 2.0), ("b", 3.0), ("c", 40.0)):
        past_run(home, monkeypatch, name, seconds)
    past_run(home, monkeypatch, "d", 9.0, config=TrainConfig(**{**CONFIG.to_dict(), "resolution": 512}))
    found = estimate_time(home, CONFIG)
    assert found and found.runs == 3 and found.seconds == pytest.approx(7 + 11 * 3)


@pytest.mark.parametrize("event", [Paused(3), Resumed(3)])
def test_a_run_that_did_not_go_through_says_nothing(home: Home, monkeypatch, event: Event) -> None:
    assert run_timing(past_run(home, monkeypatch, "a", 2.0, event).path) is None
    unfinished = RunFolder.create(home.runs / "b", CONFIG)
    assert run_timing(unfinished.path) is None
    unfinished.append(Preparing("Loading"))
    assert run_timing(unfinished.path) is None and estimate_time(home, CONFIG) is None


def test_the_first_estimate_comes_from_a_measured_step(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    engine: Any = SimpleNamespace(seconds_per_picture=lambda *given: asked.append(given) or 0.01)
    short, long = (expected_time(home, engine, TrainConfig(**{**CONFIG.to_dict(), "steps": steps}))
                   for steps in (100, 200))   # fmt: skip
    assert short and long and short.runs == 0
    assert asked == [("embedded", 2)] * 2
    assert long.seconds - short.seconds == pytest.approx(100 * (2 + 2) * 0.01 * time_estimate._PASS)
    other = TrainConfig(**{**CONFIG.to_dict(), "base": "somebody/else"})
    assert expected_time(home, engine, other) is None, "nothing is loaded only to be timed"
    engine.seconds_per_picture = lambda *_: None   # another base model is in memory
    assert expected_time(home, engine, CONFIG) is None
    past_run(home, monkeypatch, "a", 2.0)
    known = expected_time(home, engine, CONFIG)
    assert known and known.runs == 1


def test_an_estimate_is_kept_with_its_run(home: Home) -> None:
    run = RunFolder.create(home.runs / "a", CONFIG)
    assert saved_estimate(run) == 0
    save_estimate(run, time_estimate.TimeEstimate(120.5, 3))
    assert saved_estimate(run) == 120.5
    (run.path / "estimate.json").write_text("{")
    assert saved_estimate(run) == 0
