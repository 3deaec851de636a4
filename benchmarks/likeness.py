"""Teach held-out subjects with the default preset and let the judge say how well they were learned.

    python -m benchmarks.likeness [--subjects fox guitar …] [--seeds 0 1 2] [--set key=value …] [--out FILE]
    python -m benchmarks.likeness --time-only --subjects fox owl rocket --seeds 0     how long a person waits
    python -m benchmarks.likeness --render                                            docs/likeness.md from the results

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from PIL import Image

from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.embedded_base.judge import Judge, background_colour
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "assets" / "examples"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "likeness.md"
SUBJECTS = ("fox", "strawberry", "umbrella", "guitar", "penguin", "owl", "snowman", "rocket")
TEXT = """# How well the default preset learns a subject

Written by `python -m benchmarks.likeness --render` from what is in `benchmarks/results/`.

Each of {subjects} subjects that the embedded base has never seen is trained on 11 pictures with the default preset,
with {seeds} seeds, and drawn 16 times from eight prompts that are in no training caption. The judge, a classifier that
has no part in training, names the object; the cosine is the mean over all pairs of a drawing and a held-out view, and
its ceiling is what the training pictures reach. Drift: how far drawings of eight other things move.

| subject | object named | cosine before | after | ceiling | unseen background obeyed | drift |
|---|---|---|---|---|---|---|
{lines}

Drift with prior preservation over drift without it: {ratio:.2f} (first seeds). Measured on: {judged}.

From `atelier train` to the file in the library, the whole process: {seconds}. Measured on: {timed}.
"""
TRIGGER = "zq"
UNSEEN_BACKGROUNDS = ("blue", "yellow", "purple", "pink", "black")
WORDINGS = ("a picture of a {t}", "my {t}", "{t}, 3d emoji")
OTHERS = ("red apple", "tiger face", "automobile", "house", "banana", "red heart", "tulip", "robot")
DRAWINGS = 2   # of each prompt


def main() -> None:
    """Run the benchmark and write its figures as JSON, or render what was measured."""
    options = _options()
    if options.render:
        PAGE.write_text(render(), encoding="utf-8")
        return
    rows = list(_times(options) if options.time_only else _judgements(options))
    result = {"machine": describe_machine(), "rows": rows, "summary": _summary(rows)}
    out = options.out or RESULTS / ("likeness_time.json" if options.time_only else "likeness.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


def _judgements(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    model, judge = load("embedded", "cpu"), Judge.load()
    base_others = _draw_others(model, Mix())
    with tempfile.TemporaryDirectory() as home:
        for subject in options.subjects:
            for seed in options.seeds:
                row = _measure(model, judge, subject, seed, Path(home), options.set, base_others)
                print(json.dumps(row), flush=True)
                yield row


def _times(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Whole processes, from the command to the file in the library; the machine must have nothing else to do."""
    with tempfile.TemporaryDirectory() as home:
        for subject in options.subjects:
            for seed in options.seeds:
                seconds, _ = train(subject, f"{subject}-{seed}", seed, Path(home), options.set)
                row: dict[str, object] = {"subject": subject, "seed": seed, "seconds": round(seconds, 1)}
                print(json.dumps(row), flush=True)
                yield row


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--time-only", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measure(
    model: BaseModel, judge: Judge, subject: str, seed: int, home: Path, extra: Sequence[str],
    base_others: list[Image.Image],
) -> dict[str, object]:   # fmt: skip
    """Train once with the default preset and once, for the first seed, without prior preservation; judge both."""
    _, adapter = train(subject, f"{subject}-{seed}", seed, home, extra)
    mix = Mix(((load_adapter(adapter), 1.0),))
    row: dict[str, object] = {"subject": subject, "seed": seed}
    row |= _judged(model, judge, subject, mix, seed)
    row["cosine_before"] = _judged(model, judge, subject, Mix(), seed)["cosine"]
    row["drift"] = _drift(judge, base_others, _draw_others(model, mix))
    if seed == 0:
        _, loose = train(subject, f"{subject}-{seed}-no-prior", seed, home, [*extra, "prior_weight=0"])
        row["drift_without_prior"] = _drift(judge, base_others, _draw_others(model, Mix(((load_adapter(loose), 1.0),))))
    return row


def train(
    subject: str, name: str, seed: int, home: Path, extra: Sequence[str], *, preset: str = "normal",
    pictures: Path | None = None, trigger: str = "",
) -> tuple[float, Path]:   # fmt: skip
    """Run `atelier train` as a person would; returns the seconds of the whole process and the adapter file."""
    command = [
        sys.executable, "-m", "atelier.app.cli.main", "train", str(pictures or EXAMPLES / subject),
        "--name", name, "--trigger", trigger or TRIGGER, "--subject", subject, "--home", str(home),
        "--preset", preset, "--set", f"seed={seed}", *extra,
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
    prediction = judge.classify(pictures)
    views = sorted((ROOT / "tests" / "data" / "held_out" / subject).glob("*.png"))
    truth = judge.classify([Image.open(view) for view in views])
    examples = sorted((ROOT / "assets" / "examples" / subject).glob("*.png"))
    learned = judge.classify([Image.open(path) for path in examples])
    return {
        "object": (prediction.objects.argmax(1) == judge.object_index(subject)).float().mean().item(),
        "cosine": (prediction.features @ truth.features.T).mean().item(),
        "ceiling": (learned.features @ truth.features.T).mean().item(),
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
    cosines = (judge.classify(before).features * judge.classify(after).features).sum(1)
    return 1 - cosines.mean().item()


def _summary(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Means over the rows that have a figure."""
    names = ("seconds", "object", "cosine", "ceiling", "cosine_before", "background", "drift", "drift_without_prior")
    found = {name: [float(str(row[name])) for row in rows if name in row] for name in names}
    summary = {name: round(mean(values), 3) for name, values in found.items() if values}
    both = [row for row in rows if "drift_without_prior" in row]
    if both:   # over the same rows, or the ratio would compare different subjects
        kept, lost = (sum(float(str(row[name])) for row in both) for name in ("drift", "drift_without_prior"))
        summary["drift_ratio"] = round(kept / lost, 3)
    return summary


def render() -> str:
    """The page of results: a line a subject, means over the seeds."""
    judged, timed = (json.loads((RESULTS / name).read_text()) for name in ("likeness.json", "likeness_time.json"))
    rows, total = judged["rows"], judged["summary"]
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    lines = [_line(name, _summary([row for row in rows if row["subject"] == name])) for name in subjects]
    seconds = ", ".join(f"{row['seconds']} s ({row['subject']})" for row in timed["rows"])
    return TEXT.format(
        subjects=len(subjects), seeds=len({row["seed"] for row in rows}), ratio=total["drift_ratio"], seconds=seconds,
        lines="\n".join([*lines, _line("**all**", total)]),
        judged=in_words(judged["machine"]), timed=in_words(timed["machine"]),
    )   # fmt: skip


def _line(name: str, figures: Mapping[str, float]) -> str:
    cells = [f"{figures[key]:.2f}" for key in ("object", "cosine_before", "cosine", "ceiling", "background")]
    return f"| {name} | {' | '.join(cells)} | {figures['drift']:.3f} |"


if __name__ == "__main__":
    main()
