"""A training that is killed, once or twice, goes on and ends as if nothing had been: one adapter, the same weights."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from trial_runs import Outcome, Place, Workshop, count_operations, kill_self, make_place, start

MAX_RESTARTS = 5


@dataclass(slots=True)
class KillFigures:
    """What came of a series of trials."""

    trials: int = 0
    kills: int = 0        # processes that were killed in mid-work
    at_operations: int = 0   # of these, at a chosen file operation; the others at a random moment
    lost: int = 0         # runs without an adapter
    doubled: int = 0      # runs with more than one
    different: int = 0    # adapters or losses that are not bit-equal to those of the undisturbed run
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def run_kill_trials(workshop: Workshop, folder: Path, trials: int, seed: int = 0) -> KillFigures:
    """Each trial kills a run at one or two random moments, half of them before a random file operation."""
    figures, began = KillFigures(), time.monotonic()
    operations = count_operations(counted := make_place(workshop, folder / "counted"))
    whole = counted.outcome()
    clock = time.monotonic()
    start(make_place(workshop, folder / "timed")).join()
    seconds = time.monotonic() - clock
    for number in range(trials):
        dice = random.Random(f"{seed}-{number}")
        place = make_place(workshop, folder / f"{number:04d}")
        for _ in range(dice.choice((1, 1, 2))):
            _kill_once(place, dice, operations, seconds, figures)
        for _ in range(MAX_RESTARTS):
            (process := start(place)).join()
            if process.exitcode == 0:
                break
        _judge(f"trial {number} of seed {seed}", place.outcome(), whole, figures)
        shutil.rmtree(place.folder)
    figures.seconds = time.monotonic() - began
    return figures


def _kill_once(place: Place, dice: random.Random, operations: int, seconds: float, figures: KillFigures) -> None:
    if dice.random() < 0.5:
        process = start(place, dice.randint(1, operations), kill_self)
        at_operation = 1
    else:
        process, at_operation = start(place), 0
        time.sleep(dice.uniform(0.0, seconds))
        if process.pid and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode == -signal.SIGKILL:
        figures.kills += 1
        figures.at_operations += at_operation


def _judge(trial: str, found: Outcome, whole: Outcome, figures: KillFigures) -> None:
    figures.trials += 1
    lost, doubled = found.adapters == 0 or found.state != "done", found.adapters > 1
    different = found.tensors != whole.tensors or found.losses != whole.losses
    figures.lost += lost
    figures.doubled += doubled
    figures.different += different
    if lost or doubled or different:
        figures.faults.append(f"{trial}: {found.adapters} adapters, {found.state}, {len(found.losses)} losses")
