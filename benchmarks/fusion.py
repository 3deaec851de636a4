"""Objects, styles and background habits drawn together, by every method, from one prompt that asks for all of them.

    python -m benchmarks.fusion_lessons --home DIR                      teach them, each alone
    python -m atelier.training.embedded_base.train_gates --dataset DIR
                                                                        train the gates, on lessons that are not judged
    python -m benchmarks.fusion --home DIR [--sets N] [--methods M …]   draw and judge; goes on where it stopped
    python -m benchmarks.fusion --render                                docs/fusion.md from the results

The judge has seen neither adapters nor drawings. Of every drawing it tells the probability of the object and of the
style, and whether most of the border has the colour that was taught; a drawing is worth what its worst concept is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python -m benchmarks.fusion` works too
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.fusion.gates import GateSet
from atelier.adapters.fusion.live import WeightedAdapter
from atelier.adapters.fusion.methods import METHODS, combine
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.bundled import gates_for
from atelier.training.embedded_base.judge import Judge, background_colour
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.fusion_lessons import LESSONS, Lesson, adapter_path
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "fusion.md"
NAMES = {lesson.what: lesson for lesson in LESSONS}
SETS = tuple(tuple(NAMES[what] for what in names.split(" × ")) for names in (
    "fox × pencil", "guitar × pixel art", "strawberry × pencil", "umbrella × pixel art", "fox × purple",
    "guitar × green", "strawberry × green", "umbrella × purple", "fox × pixel art × green",
    "guitar × pencil × purple", "strawberry × pixel art × purple", "umbrella × pencil × green", "owl × pencil",
    "rocket × pixel art", "penguin × pencil", "snowman × pixel art", "owl × purple", "rocket × green",
    "penguin × green", "snowman × purple", "owl × pixel art × green", "rocket × pencil × purple",
    "penguin × pixel art × purple", "snowman × pencil × green",
))   # fmt: skip
# In this order, so that the question is answered first; side by side is the sum, written differently.
COMPARED = ("sum", "gated", "composite", "switch", "normalised", "ties", "dare", "svd")
REQUEST = DrawRequest(seed=1000, count=4, steps=8)   # enough to judge a mix by, as in the Mix Lab
TILE = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One drawing of one set by one method."""

    method: str
    concepts: tuple[str, ...]
    seed: int
    scores: tuple[float, ...]   # of each concept, 0 … 1
    seconds: float              # to draw, a quarter of the batch's

    @property
    def worst(self) -> float:
        """What the drawing is worth."""
        return min(self.scores)


def main() -> None:
    """Measure what is missing, or render what was measured."""
    options = _options()
    if options.render:
        result = json.loads((RESULTS / "fusion.json").read_text())
        PAGE.write_text(render(result), encoding="utf-8")
        return
    model, judge = load("embedded", "cpu"), Judge.load()
    gates = GateSet.load(options.gates) if options.gates else gates_for(model)
    folder = options.home / options.out
    folder.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        for concepts in SETS[: options.sets]:
            parts = [WeightedAdapter(load_adapter(adapter_path(options.home, lesson))) for lesson in concepts]
            measure(model, judge, folder, concepts, parts, (method, gates))
    rows = read(folder)
    print("\n".join(table(rows)))
    print(summary(rows))
    RESULTS.mkdir(exist_ok=True)
    if options.write:
        facts = {"machine": describe_machine(), "steps": REQUEST.steps, "guidance": REQUEST.guidance}
        text = json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=0)
        (RESULTS / "fusion.json").write_text(text + "\n", encoding="utf-8")
        shown = [method for method in METHODS if any(row.method == method for row in rows)]
        sheet(folder, shown).save(ROOT / "docs" / "fusion.png", optimize=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--home", type=Path, help="with what was taught")
    parser.add_argument("--sets", type=int, default=len(SETS), help="only the first of them")
    parser.add_argument("--methods", nargs="+", default=list(COMPARED))
    parser.add_argument("--gates", type=Path, help="a file of gates (default: the one that comes with Atelier)")
    parser.add_argument("--out", default="drawn", help="folder of the home for drawings and scores")
    parser.add_argument("--write", action="store_true", help="take the results into the repository")
    parser.add_argument("--render", action="store_true")
    return parser.parse_args()


def measure(
    model: BaseModel, judge: Judge, folder: Path, concepts: Sequence[Lesson], parts: Sequence[WeightedAdapter],
    how: tuple[str, GateSet | None],
) -> None:   # fmt: skip
    """Draw and judge one set by one method, unless that was done before."""
    method, gates = how
    name = "-".join([method, *(lesson.what for lesson in concepts)])
    if (folder / f"{name}.json").exists():
        return
    started = time.process_time()
    mixed = combine(model.models(), parts, method, steps=REQUEST.steps, gates=gates)
    request = DrawRequest.from_dict({**REQUEST.to_dict(), "prompt": prompt(concepts)})
    pictures = draw(model, request, mixed)
    seconds = (time.process_time() - started) / len(pictures)
    found = [scores(judge, picture, concepts) for picture in pictures]
    what = tuple(lesson.what for lesson in concepts)
    rows = [Row(method, what, REQUEST.seed + i, one, round(seconds, 2)) for i, one in enumerate(found)]
    strip = Image.new("RGB", (TILE * len(pictures), TILE))
    for i, picture in enumerate(pictures):
        strip.paste(picture.convert("RGB"), (TILE * i, 0))
    strip.save(folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    print(name, [[round(score, 2) for score in row.scores] for row in rows], flush=True)


def prompt(concepts: Sequence[Lesson]) -> str:
    """One that asks for all; no caption of any lesson says that."""
    said = {lesson.role: lesson for lesson in concepts}
    style = f"a {said['style'].trigger} emoji" if "style" in said else "an emoji"
    thing = f" of a {said['object'].trigger} {said['object'].what}"
    return style + thing + (f" on a {said['background'].trigger} background" if "background" in said else "")


def scores(judge: Judge, picture: Image.Image, concepts: Sequence[Lesson]) -> tuple[float, ...]:
    """Of each concept, 0 … 1."""
    prediction = judge.classify([picture])
    found = []
    for lesson in concepts:
        if lesson.role == "object":
            found.append(prediction.objects[0, judge.object_index(lesson.what)].item())
        elif lesson.role == "style":
            found.append(prediction.styles[0, judge.style_index(lesson.what)].item())
        else:
            found.append(float(background_colour(picture) == lesson.what))
    return tuple(round(score, 4) for score in found)


def read(folder: Path) -> list[Row]:
    """The rows of those methods that have drawn every set that any has."""
    rows = [row_of(row) for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]
    sets = {row.concepts for row in rows}
    whole = [method for method in METHODS if {row.concepts for row in rows if row.method == method} == sets]
    return [row for row in rows if row.method in whole]


def row_of(values: dict[str, Any]) -> Row:
    """A row from what was written of it."""
    return Row(**{**values, "concepts": tuple(values["concepts"]), "scores": tuple(values["scores"])})


def worst_by_set(rows: Sequence[Row], method: str) -> dict[tuple[str, ...], float]:
    """Mean over the seeds of a method's worst concept, for each set."""
    found: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row.method == method:
            found.setdefault(row.concepts, []).append(row.worst)
    return {concepts: mean(values) for concepts, values in found.items()}


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % of the means of as many values drawn again from these (bootstrap over sets)."""
    data = torch.tensor(values)
    means = data[torch.randint(len(data), (draws, len(data)), generator=torch.Generator().manual_seed(0))].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line of Markdown for each method."""
    yield "| method | worst concept (95 % over sets) | two concepts | three | object | style | background | CPU s |"
    yield "|---|---|---|---|---|---|---|---|"
    for method in (method for method in METHODS if any(row.method == method for row in rows)):
        own, sets = [row for row in rows if row.method == method], worst_by_set(rows, method)
        low, high = interval(list(sets.values()))
        sizes = (_mean(value for concepts, value in sets.items() if len(concepts) == count) for count in (2, 3))
        roles = (_mean(score for row in own for what, score in zip(row.concepts, row.scores, strict=True)
                       if NAMES[what].role == role) for role in ("object", "style", "background"))   # fmt: skip
        cells = [f"{mean(sets.values()):.3f} ({low:.2f} – {high:.2f})", *sizes, *roles,
                 f"{mean(row.seconds for row in own):.2f}"]   # fmt: skip
        yield f"| {method} | {' | '.join(cells)} |"


def by_set(rows: Sequence[Row]) -> list[str]:
    """Markdown lines: a row for each set, a column for each method."""
    found = {method: worst_by_set(rows, method) for method in METHODS}
    found = {method: values for method, values in found.items() if values}
    lines = [f"| set | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for concepts in (tuple(lesson.what for lesson in one) for one in SETS):
        scores = (f"{values[concepts]:.2f}" if concepts in values else "–" for values in found.values())
        lines.append(f"| {' × '.join(concepts)} | {' | '.join(scores)} |")
    return lines


def _mean(values: Iterator[float]) -> str:
    found = list(values)
    return f"{mean(found):.2f}" if found else "–"


def summary(rows: Sequence[Row]) -> str:
    """One line: the best method, and gates against the plain sum, set by set."""
    found = {method: worst_by_set(rows, method) for method in {row.method for row in rows}}
    best = max(found, key=lambda method: mean(found[method].values()))
    line = f"fusion: {len(found['sum'])} sets × {REQUEST.count} seeds; best: {best} ({mean(found[best].values()):.3f})"
    if "gated" not in found:
        return line
    gains = [found["gated"][concepts] - value for concepts, value in found["sum"].items() if concepts in found["gated"]]
    ours, theirs, (low, high) = mean(found["gated"].values()), mean(found["sum"].values()), interval(gains)
    share = f"{100 * (ours / theirs - 1):+.0f} %" if theirs else "no ratio"
    return f"{line}; gated {ours:.3f} against sum {theirs:.3f} ({share}; gain {low:+.3f} to {high:+.3f})"


def sheet(folder: Path, methods: Sequence[str]) -> Image.Image:
    """Rows are methods, columns are sets; the first two drawings of each, one above the other."""
    page = Image.new("RGB", (TILE * len(SETS), 2 * TILE * len(methods)), "white")
    for line, method in enumerate(methods):
        for column, concepts in enumerate(SETS):
            path = folder / f"{'-'.join([method, *(lesson.what for lesson in concepts)])}.png"
            if path.exists():
                strip = Image.open(path)
                for i in range(2):
                    tile = strip.crop((TILE * i, 0, TILE * (i + 1), TILE))
                    page.paste(tile, (TILE * column, TILE * (2 * line + i)))
    return page


def render(result: dict[str, Any]) -> str:
    """The page of results."""
    rows = [row_of(row) for row in result["rows"]]
    methods = ", ".join(dict.fromkeys(method for method in METHODS if any(row.method == method for row in rows)))
    mixing = RESULTS / "mixing.json"
    cost = _cost(json.loads(mixing.read_text())) if mixing.exists() else ""
    return f"""# Several adapters at once

Written by `python -m benchmarks.fusion --render` from what is in `benchmarks/results/`. What the methods are:
`adapters/fusion/methods.py`; why they are as they are: [notes/0009-fusion.md](notes/0009-fusion.md).

Objects that the embedded base has never seen, styles and background habits are trained separately with the
app's defaults (`benchmarks/fusion_lessons.py`), and drawn together from one prompt, {REQUEST.count} seeds a set,
{result["steps"]} steps, every adapter at strength 1. The gates were trained on other objects, styles and colours.
Scores are the judge's probabilities of object and style, and whether the border has the colour; a drawing counts as its
worst concept.

{chr(10).join(table(rows))}

{summary(rows)}

The worst concept, set by set:

{chr(10).join(by_set(rows))}

![Rows: {methods}, two drawings each; columns: the sets](fusion.png)

Columns: the sets in the order of the table.

Measured on: {in_words(result["machine"])}.
{cost}"""


def _cost(result: dict[str, Any]) -> str:
    lines = "\n".join(f"| {row['contender']} | {row['count']} | {row['ratio']:.2f} | {row['spread']:.2f} |"
                      for row in result["rows"])   # fmt: skip
    return f"""
## What it costs

One call of the UNet with n adapters of rank {result["rank"]} on all its layers, relative to the base alone,
in the same run: CPU time, median of {result["repeats"]} and half the distance of the quartiles
(`python -m benchmarks.mixing`).

| contender | n | times the base | spread |
|---|---|---|---|
{lines}

{result["reason"]}

Measured on: {in_words(result["machine"])}.
"""


if __name__ == "__main__":
    main()
