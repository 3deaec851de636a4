"""Teach held-out subjects with the default preset and let the judge say how well they were learned.

    python benchmarks/likeness.py [--subjects fox guitar …] [--seeds 0 1 2] [--set key=value …] [--out FILE]

For each subject and seed: `atelier train` as a person would run it (whole process timed), then drawings from prompts
that are in no training caption: backgrounds that were never shown with the subject, and other wordings. The judge has
seen neither. Drift is how far drawings of *other* things move from the base model's own, with prior preservation and
without it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from machine import describe_machine
from PIL import Image

from atelier.adapters.files import load_adapter
from atelier.adapters.mix import Mix
from atelier.training.base_model import BaseModel, load
from atelier.training.judge import Judge, background_colour
from atelier.training.sample import DrawRequest, draw

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = ("fox", "strawberry", "umbrella", "guitar", "penguin", "owl", "snowman", "rocket")
TRIGGER = "zq"
UNSEEN_BACKGROUNDS = ("blue", "yellow", "purple", "pink", "black")
WORDINGS = ("a picture of a {t}", "my {t}", "{t}, 3d emoji")
OTHERS = ("red apple", "tiger face", "automobile", "house", "banana", "red heart", "tulip", "robot")
DRAWINGS = 2   # of each prompt


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    options = _options()
    model, judge = load("embedded", "cpu"), Judge.load()
    base_others = _draw_others(model, Mix())
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for subject in options.subjects:
            for seed in options.seeds:
                row = _measure(model, judge, subject, seed, Path(home), options.set, base_others)
                rows.append(row)
                print(json.dumps(row), flush=True)
    result = {"machine": describe_machine(), "rows": rows, "summary": _summary(rows)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "likeness.json")
    return parser.parse_args()


def _measure(
    model: BaseModel, judge: Judge, subject: str, seed: int, home: Path, extra: Sequence[str],
    base_others: list[Image.Image],
) -> dict[str, object]:   # fmt: skip
    """Train once with the default preset and once, for the first seed, without prior preservation; judge both."""
    seconds, adapter = _train(subject, f"{subject}-{seed}", seed, home, extra)
    mix = Mix(((load_adapter(adapter), 1.0),))
    row: dict[str, object] = {"subject": subject, "seed": seed, "seconds": round(seconds, 1)}
    row |= _judged(model, judge, subject, mix, seed)
    row["cosine_before"] = _judged(model, judge, subject, Mix(), seed)["cosine"]
    row["drift"] = _drift(judge, base_others, _draw_others(model, mix))
    if seed == 0:
        _, loose = _train(subject, f"{subject}-{seed}-no-prior", seed, home, [*extra, "prior_weight=0"])
        row["drift_without_prior"] = _drift(judge, base_others, _draw_others(model, Mix(((load_adapter(loose), 1.0),))))
    return row


def _train(subject: str, name: str, seed: int, home: Path, extra: Sequence[str]) -> tuple[float, Path]:
    command = [
        sys.executable, "-m", "atelier.app.cli", "train", str(ROOT / "assets" / "examples" / subject),
        "--name", name, "--trigger", TRIGGER, "--subject", subject, "--home", str(home),
        "--set", f"seed={seed}", *extra,
    ]   # fmt: skip
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    return time.monotonic() - started, home / "adapters" / f"{name}.safetensors"


def _judged(model: BaseModel, judge: Judge, subject: str, mix: Mix, seed: int) -> dict[str, float]:
    """Top-1 object, cosine to held-out views, and obeyed backgrounds over all drawings."""
    called = f"{TRIGGER} {subject}"
    coloured = {colour: f"an emoji of a {called} on a {colour} background" for colour in UNSEEN_BACKGROUNDS}
    plain = [wording.format(t=called) for wording in WORDINGS]
    pictures, obeyed = [], []
    for i, (colour, prompt) in enumerate([*coloured.items(), *(("", prompt) for prompt in plain)]):
        request = DrawRequest(prompt=prompt, seed=1000 * seed + 10 * i, count=DRAWINGS)
        drawn = draw(model, request, mix)
        pictures += drawn
        obeyed += [background_colour(picture) == colour for picture in drawn if colour]
    opinion = judge.look(pictures)
    views = sorted((ROOT / "tests" / "data" / "held_out" / subject).glob("*.png"))
    truth = judge.look([Image.open(view) for view in views])
    return {
        "object": (opinion.objects.argmax(1) == judge.object_index(subject)).float().mean().item(),
        "cosine": (opinion.features @ truth.features.T).mean().item(),
        "background": mean(obeyed),
    }


def _draw_others(model: BaseModel, mix: Mix) -> list[Image.Image]:
    return [
        picture
        for i, thing in enumerate(OTHERS)
        for picture in draw(model, DrawRequest(prompt=f"an emoji of a {thing}", seed=50 + i), mix)
    ]


def _drift(judge: Judge, before: list[Image.Image], after: list[Image.Image]) -> float:
    """1 − cosine between the judge's features of the same prompt and seed, without and with the adapter."""
    cosines = (judge.look(before).features * judge.look(after).features).sum(1)
    return 1 - cosines.mean().item()


def _summary(rows: list[dict[str, object]]) -> dict[str, float]:
    def over(key: str) -> float:
        return round(mean(float(str(row[key])) for row in rows if key in row), 3)

    with_both = [row for row in rows if "drift_without_prior" in row]
    ratio = [float(str(row["drift"])) / float(str(row["drift_without_prior"])) for row in with_both]
    return {
        "seconds": over("seconds"), "slowest": max(float(str(row["seconds"])) for row in rows),
        "object": over("object"), "cosine": over("cosine"), "cosine_before": over("cosine_before"),
        "background": over("background"), "drift": over("drift"),
        "drift_without_prior": over("drift_without_prior") if with_both else float("nan"),
        "drift_ratio": round(mean(ratio), 3) if ratio else float("nan"),
    }   # fmt: skip


if __name__ == "__main__":
    main()
