"""Memorization, leaks and the cost of measuring them on the embedded base: a good run and an over-taught one.

    python -m benchmarks.training_measures      benchmarks/results/training_measures.json and docs/training-measures.md
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Event, Measured, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import STOP_MEASURES, TrainConfig, load_preset
from atelier.training.data.prepare import encode_dataset, scan_pictures
from atelier.training.loop.batch import PromptEmbeddingCache
from atelier.training.loop.health import stop_advice
from atelier.training.loop.snapshots import find_snapshots
from atelier.training.measures.leak import LEAK, measure_leaks
from atelier.training.measures.memorization import Membership, gains, make_pairs, membership_auc
from atelier.training.runs.run import run
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

RESULTS, DOCUMENT = ROOT / "benchmarks" / "results" / "training_measures.json", ROOT / "docs" / "training-measures.md"
EXAMPLES = ROOT / "assets" / "examples"
THING, TRAINED = "fox", 5   # of its pictures; the other six are held out
RUNS = {"good": 100, "over-taught": 1000}   # steps
LEAKING_WORD = "banana"   # in the captions of a run that names its subject by it
TEXT = """# Measures of a training

Written by `python -m benchmarks.training_measures` ({machine}; commit {commit}). {trained} pictures of the {thing} are
trained on with the preset *Normal* on the embedded base, for as many steps as it says and for ten times as many.

*AUC* is what the run itself measures: how often a trained picture gains more than the enlarged middle of one at the
same noise. *AUC, held out* is the same against {held_out} pictures of the {thing} that no run has seen: the truth that
the first one stands for. Gains are shares of the base model's loss that are gone.

| run | step | AUC | AUC, held out | gain, trained | gain, enlarged | gain, held out | drift |
|---|---|---|---|---|---|---|---|
{rows}

Stopping: {stops}.

The measurements took {overhead:.1%} of the processor's seconds of the steps in the good run, {long_overhead:.1%} in the
long one: both in turns, as the run goes on.

## Words that leak

A run of 100 steps whose captions call the {thing} "{word} {thing}" with the trigger word, and one with captions as
usual. The share of the trigger word's effect that ordinary words have, largest first; from {leak} on they leak.

| captions | words |
|---|---|
{leaks}
"""


def measure_run(folder: Path, steps: int, caption: str = "") -> dict[str, Any]:
    """Train for some steps without stopping; the measurements, and the share of the time that they took."""
    config = _config(folder, steps, caption)
    events, seconds = _timed(run(RunFolder.create(folder / "run", config), folder / "adapters"))
    measured = [event for event in events if isinstance(event, Measured)]
    stops = (stop_advice(measured[: i + 1], [], STOP_MEASURES["auto"]) for i in range(len(measured) - 1))
    advice = next(((one.step, found) for one, found in zip(measured, stops, strict=False) if found), None)
    return {"measured": [asdict(one) for one in measured], "overhead": seconds[Measured] / seconds[Stepped],
            "stopped": advice and {"step": advice[0], "keep": advice[1].best_step, "measure": advice[1].measure}}


def held_out_auc(model: BaseModel, folder: Path) -> dict[int, tuple[float, float]]:
    """AUC and gain of each snapshot against the pictures that were held out for good."""
    config = RunFolder(folder / "run").config()
    examples = encode_dataset(model, scan_pictures(replace(config, pictures=str(EXAMPLES / THING))))
    pairs = Membership.of(make_pairs(examples[:TRAINED], examples[TRAINED:], [], 999),
                          model.scheduler.config.num_train_timesteps)   # fmt: skip
    files = find_snapshots(folder / "run")
    text = PromptEmbeddingCache(model, load_adapter(next(iter(files.values()))))
    base = pairs.losses(model, config, text)
    found = {}
    for step, path in files.items():
        with mount(model.models(), Mix(((load_adapter(path), 1.0),))):
            gain: Tensor = gains(base, pairs.losses(model, config, text))
        found[step] = membership_auc(gain), gain[1].mean().item()
    return found


def word_leaks(model: BaseModel, folder: Path) -> list[tuple[str, float]]:
    """The words that draw most of the subject of a run."""
    config = RunFolder(folder / "run").config()
    [path] = (folder / "adapters").glob("*.safetensors")
    words = [config.subject, LEAKING_WORD, "emoji", "red", "green"]
    subject = f"{config.trigger_word} {config.subject}"
    leaks = measure_leaks(model, load_adapter(path), "an emoji of a {}", subject, words)
    return [(leak.word, leak.share) for leak in leaks]


def _config(folder: Path, steps: int, caption: str) -> TrainConfig:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for file in sorted((EXAMPLES / THING).iterdir()):
        if int(file.stem[-2:]) <= TRAINED and (file.suffix != ".txt" or not caption):
            shutil.copy(file, pictures)
    changes = {"name": "zorp", "subject": THING, "pictures": str(pictures), "steps": steps, "stop_when": "never",
               "preview_every": 0, "checkpoint_every": 0, "snapshots": 4, "precision": "fp32", "caption": caption,
               "validate_every": 50, "keep_best": False}   # fmt: skip
    return TrainConfig.from_dict({**load_preset("normal", "embedded"), **changes})


def _timed(events: Iterator[Event]) -> tuple[list[Event], Mapping[type, float]]:
    """The events of a run, and how many seconds of the processor each kind of them took; others' work doesn't count."""
    seen, seconds, before = [], defaultdict[type, float](float), time.process_time()
    for event in events:
        now = time.process_time()
        seconds[type(event)] += now - before
        seen.append(event)
        before = now
    return seen, seconds


def _rows(runs: dict[str, Any]) -> Iterator[str]:
    for name, result in runs.items():
        truth = result["held_out"]
        for one in result["measured"]:
            if one["step"] in truth:
                auc, gain = truth[one["step"]]
                numbers = (one["memorization"], auc, one["member_gain"], one["held_out_gain"], gain, one["drift"])
                yield f"| {name} | {one['step']} | " + " | ".join(f"{value:.2f}" for value in numbers) + " |"


def _stops(runs: dict[str, Any]) -> str:
    stops = {name: result["stopped"] for name, result in runs.items()}
    return "; ".join(f"the {name} run at step {stop['step']} because of {stop['measure']}, keeping step {stop['keep']}"
                     if stop else f"the {name} run not at all" for name, stop in stops.items())   # fmt: skip


def _document(result: dict[str, Any]) -> str:
    leaks = [f"| {name} | " + ", ".join(f"{word} {share:.2f}" for word, share in words[:5]) + " |"
             for name, words in result["leaks"].items()]   # fmt: skip
    runs = result["runs"]
    return TEXT.format(
        machine=in_words(result["machine"]), commit=result["commit"], trained=TRAINED, thing=THING, held_out=6,
        rows="\n".join(_rows(runs)), stops=_stops(runs), overhead=runs["good"]["overhead"],
        long_overhead=runs["over-taught"]["overhead"], word=LEAKING_WORD, leak=LEAK, leaks="\n".join(leaks),
    )   # fmt: skip


def main(names: Sequence[str] = tuple(RUNS)) -> None:
    """Train, measure, and write the figures and the document."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    result: dict[str, Any] = {"machine": describe_machine(), "commit": commit, "runs": {}, "leaks": {}}
    with tempfile.TemporaryDirectory() as folder:
        model = load("embedded", "cpu")
        for name in names:
            found = measure_run(Path(folder) / name, RUNS[name])
            result["runs"][name] = {**found, "held_out": held_out_auc(model, Path(folder) / name)}
        measure_run(Path(folder) / "leak", 100, f"an emoji of a {LEAKING_WORD} {{trigger}} {{subject}}")
        result["leaks"] = {"as usual": word_leaks(model, Path(folder) / "good"),
                           f"with {LEAKING_WORD!r}": word_leaks(model, Path(folder) / "leak")}   # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(_document(result), encoding="utf-8")


if __name__ == "__main__":
    main()
