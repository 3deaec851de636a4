"""How long a training will take on this machine: from the seconds per step of trainings that were run on it before."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.parse import parse_json
from atelier.app.jobs.jobs import run_folders
from atelier.app.services.engine import Engine
from atelier.app.store.home import Home
from atelier.training.config.events import Finished, Paused, Resumed, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import EMBEDDED, TrainConfig

# Of trainings on the embedded base, counted in bare passes of one picture: docs/time_estimates.md.
_AROUND = 220.0   # before the first step and after the last
_PASS = 0.87
_STEP = 2.0       # pictures' time that a step takes however many it has: the optimizer, and what comes between steps
_LOOKED_AT = 40    # of the newest runs
_COUNTED = 5       # of those that are alike
_FILE = "estimate.json"


@dataclass(frozen=True, slots=True)
class RunTiming:
    """What a finished training took, in seconds."""

    around: float    # until its first step, and after its last: there is as much of it in a short training as in a long
    per_step: float  # a step, and its share of what comes between steps
    pictures: int    # per step
    config: TrainConfig

    def predict(self, config: TrainConfig) -> float:
        """What another training would take."""
        larger = (_STEP + pictures_per_step(config)) / (_STEP + self.pictures)
        return self.around + config.steps * self.per_step * larger


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Seconds that a training will take, and how many trainings say so; none where a few steps were measured."""

    seconds: float
    runs: int


def pictures_per_step(config: TrainConfig) -> int:
    """How many pictures go through the UNet in one optimizer step."""
    return (config.batch + config.prior_batch) * config.accumulate


def estimate_time(home: Home, config: TrainConfig) -> TimeEstimate | None:
    """The median of what the newest trainings say that are alike; None where there are none."""
    timings = filter(None, (run_timing(path) for path in reversed(run_folders(home)[-_LOOKED_AT:])))
    alike = [timing for timing in timings if _key(timing.config) == _key(config)][:_COUNTED]
    return TimeEstimate(median(timing.predict(config) for timing in alike), len(alike)) if alike else None


def expected_time(home: Home, engine: Engine, config: TrainConfig) -> TimeEstimate | None:
    """How long a training takes here: by the trainings before it, or on the embedded base by a measured step.

    Raises:
        BaseError: the base model can't be loaded.
    """
    if (found := estimate_time(home, config)) or config.base != EMBEDDED:
        return found
    seconds = engine.seconds_per_picture(config.base, pictures_per_step(config))
    return first_estimate(config, seconds) if seconds else None


def first_estimate(config: TrainConfig, seconds_per_picture: float) -> TimeEstimate:
    """The estimate of a home that has not trained yet, from what was measured of one picture's way through the UNet."""
    passes = _AROUND + _PASS * config.steps * (_STEP + pictures_per_step(config))
    return TimeEstimate(passes * seconds_per_picture, 0)


def _key(config: TrainConfig) -> tuple[object, ...]:
    """What decides how long a picture takes, beside the machine."""
    return (config.base, config.resolution, config.kind, config.precision, config.gradient_checkpointing,
            config.base_in_8_bits, config.train_text_encoder, config.compile)   # fmt: skip


def run_timing(folder: Path) -> RunTiming | None:
    """What a run took; None for one that did not finish, or was paused or resumed, or is no training."""
    try:
        return _timing(folder, (folder / "events.jsonl").stat().st_mtime_ns)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=256)
def _timing(folder: Path, _changed: int) -> RunTiming | None:
    run = RunFolder(folder)
    if run.compression():
        return None
    config, events = run.config(), run.events()
    steps = [moment for moment, event in events if isinstance(event, Stepped)]
    first = next((event for _, event in events if isinstance(event, Stepped)), None)
    whole = all(not isinstance(event, Paused | Resumed) for _, event in events)
    if not whole or first is None or len(steps) < 2 or not isinstance(events[-1][1], Finished):
        return None
    # The first step is slower than the others, so it counts as preparation.
    between = steps[-1] - steps[0]
    return RunTiming(around=events[-1][0] - events[0][0] - between, per_step=between / (len(steps) - 1),
                     pictures=pictures_per_step(config), config=config)   # fmt: skip


def save_estimate(run: RunFolder, estimate: TimeEstimate | None) -> None:
    """Write down what was estimated before the start, to be compared with what it took."""
    if estimate:
        atomic_write(run.path / _FILE, json.dumps({"seconds": estimate.seconds}).encode())


def saved_estimate(run: RunFolder) -> float:
    """Seconds that were estimated before the start; 0 where nothing was."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(parse_json((run.path / _FILE).read_text(encoding="utf-8"))["seconds"])
    return 0.0
