"""How far the time that Create estimates is from what a training takes: ten trainings in a home that is empty at first.

    python -m benchmarks.pages.time_estimates      benchmarks/results/time_estimates.json and docs/time_estimates.md

The first training of a home is estimated from a measured step; each later one from those before it, as on the page.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from atelier.app.services.create.time_estimate import estimate_time, first_estimate, pictures_per_step
from atelier.app.store.home import Home, open_home
from atelier.training.base_models.base_model import load
from atelier.training.config import events
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.measures.step_time import seconds_per_picture
from atelier.training.runs.run import run
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

RESULTS, DOCUMENT = ROOT / "benchmarks" / "results" / "time_estimates.json", ROOT / "docs" / "time_estimates.md"
# Preset, steps, batch (0: its own), pictures.
TRAININGS = (("quick", 30, 0, 5), ("quick", 15, 0, 5), ("normal", 30, 0, 8), ("quick", 20, 2, 3), ("quick", 15, 0, 11),
             ("normal", 10, 8, 5), ("thorough", 15, 0, 4), ("quick", 30, 1, 6), ("normal", 20, 4, 10),
             ("quick", 10, 6, 2), ("normal", 20, 2, 7))   # fmt: skip
TEXT = """# Estimated and taken time

Written by `python -m benchmarks.pages.time_estimates` ({machine}; commit {commit}). Trainings on the embedded
base, one after another in a home that was empty before. The first of a kind is estimated from a measured
pass through the UNet, each later one from the trainings before it. Seconds are those of the processor on one core, in
which others' work does not count; by the clock, a training took longer where *load*, the number of processes that
wanted one of the {cores} cores in the minute before it ended, was above {cores}.

| preset | steps | batch | pictures | estimated from | estimated (s) | taken (s) | error | by the clock (s) | load |
|---|---|---|---|---|---|---|---|---|---|
{rows}

Median of the errors without their sign: {median:.0%}; largest: {largest:.0%}.
"""


def _train(home: Home, preset: str, steps: int, batch: int, pictures: int) -> dict[str, Any]:
    """One training, and what was estimated before it."""
    name = f"{preset}-{steps}-{batch}-{pictures}"
    changes = {"name": "zorp", "subject": "fox", "pictures": str(_pictures(home.path / name, pictures)),
               "steps": steps, "stop_when": "never", **({"batch": batch} if batch else {})}   # fmt: skip
    config = TrainConfig.from_dict({**load_preset(preset, "embedded"), **changes})
    estimate = estimate_time(home, config) or first_estimate(config, _measured(pictures_per_step(config)))
    started, by_clock = time.process_time(), time.monotonic()
    for _ in run(RunFolder.create(home.runs / f"{time.time_ns()}-{name}", config), home.adapters):
        pass
    return {"preset": preset, "steps": config.steps, "batch": config.batch, "pictures": pictures,
            "estimated": estimate.seconds, "runs": estimate.runs, "taken": time.process_time() - started,
            "by_clock": time.monotonic() - by_clock, "load": os.getloadavg()[0]}   # fmt: skip


def _measured(pictures: int) -> float:
    found = seconds_per_picture(load("embedded", "cpu"), pictures, time.process_time)
    print(f"{found:.4f} s for one of {pictures} pictures", flush=True)
    return found


def _pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for file in sorted((ROOT / "assets" / "examples" / "fox").iterdir()):
        if int(file.stem[-2:]) <= count:
            shutil.copy(file, folder)
    return folder


def _errors(trainings: list[dict[str, Any]]) -> list[float]:
    return [one["estimated"] / one["taken"] - 1 for one in trainings]


def _rows(trainings: list[dict[str, Any]]) -> Iterator[str]:
    for one in trainings:
        source = f"{one['runs']} trainings" if one["runs"] else "a measured pass"
        yield (f"| {one['preset']} | {one['steps']} | {one['batch']} | {one['pictures']} | {source} | "
               f"{one['estimated']:.1f} | {one['taken']:.1f} | {_errors([one])[0]:+.0%} | {one['by_clock']:.0f} | "
               f"{one['load']:.1f} |")


def write_document(result: dict[str, Any]) -> None:
    """Write docs/time_estimates.md."""
    errors = [abs(error) for error in _errors(result["trainings"])]
    DOCUMENT.write_text(TEXT.format(
        machine=in_words(result["machine"]), commit=result["commit"], cores=os.cpu_count(),
        rows="\n".join(_rows(result["trainings"])), median=median(errors), largest=max(errors)), encoding="utf-8")


def main() -> None:
    """Train, and write the figures and the document."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    events.time = SimpleNamespace(time=time.process_time)   # type: ignore[assignment]   # what trainings are timed by
    result: dict[str, Any] = {"machine": describe_machine(), "commit": commit, "trainings": []}
    with tempfile.TemporaryDirectory() as folder:
        home = open_home(Path(folder) / "home")
        for training in TRAININGS:
            result["trainings"].append(_train(home, *training))
            print(next(_rows(result["trainings"][-1:])), flush=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_document(result)


if __name__ == "__main__":
    main()
