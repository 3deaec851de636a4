"""Two taught subjects in one picture: does each stay itself, on its own side?

    python -m benchmarks.two_subjects --home DIR [--out FILE]     teach each subject alone, draw all pairs, judge
    python -m benchmarks.two_subjects --render                    docs/two_subjects.md from the results

Every subject has an adapter and a trigger word of its own, trained alone with the default preset. Of each pair, the
left half of a drawing should show the first and the right half the second; a drawing is worth what its worse half is
(probability by the judge). With subjects that melt into one another, or of which one is missing, that is about 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.fusion.live import Fusion, WeightedAdapter
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.embedded_base.judge import Judge, pixels_of
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.base_quality import contact_sheet
from benchmarks.embedded_base.pairs_gate import halves
from benchmarks.kinds import interval
from benchmarks.likeness import RESULTS, ROOT, train
from benchmarks.support.machine import describe_machine, in_words

TRIGGERS = {"fox": "cf", "owl": "vf", "penguin": "wr", "strawberry": "cs", "snowman": "ts", "rocket": "px"}
SEEDS = 4
SQUARE, WIDE = (64, 64), (128, 64)   # width, height
LEFT = (torch.arange(32) < 16).float()[None]   # the left half, with a hard edge
PAGE = ROOT / "docs" / "two_subjects.md"
TEXT = """# Two taught subjects in one picture

Written by `python -m benchmarks.two_subjects --render` from `benchmarks/results/two_subjects.json`. {subjects}
subjects, each taught alone with the default preset; {pairs} ordered pairs, {seeds} seeds each. The left half of a
drawing is shown to the judge, and the right half; a drawing is worth the probability of the worse of the two. Intervals
are 95 % bootstrap intervals over pairs. Two things that the base model knows come to {gate:.2f} in the same test.

| how | worse half | left | right | drawings in which both are named |
|---|---|---|---|---|
{lines}

![The first seed of every pair, a row for each way](images/base/two_subjects.webp)

Measured on: {machine}.
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """What was taught."""

    name: str
    adapters: AdapterSet

    @property
    def called(self) -> str:
        """Its trigger word and class word."""
        return f"{TRIGGERS[self.name]} {self.name}"


Way = tuple[tuple[int, int], Callable[[Subject, Subject], Mix | Fusion], Callable[[Subject, Subject], str]]


def both(left: Subject, right: Subject) -> str:
    """One prompt for both."""
    return f"an emoji of a {left.called} and a {right.called}"


def everywhere(left: Subject, right: Subject) -> Mix:
    """Both adapters act in the whole picture."""
    return Mix(((left.adapters, 1.0), (right.adapters, 1.0)))


def in_halves(left: Subject, right: Subject) -> Fusion:
    """Each adapter acts in its half; both read the drawing's prompt."""
    return Fusion((WeightedAdapter(left.adapters, region=LEFT), WeightedAdapter(right.adapters, region=1 - LEFT)))


def in_halves_with_prompts(left: Subject, right: Subject, *, own_canvas: bool = False) -> Fusion:
    """Each adapter acts in its half, which has a prompt of its own."""
    return Fusion(tuple(
        WeightedAdapter(one.adapters, region=region, prompt=f"an emoji of a {one.called}", own_canvas=own_canvas)
        for one, region in ((left, LEFT), (right, 1 - LEFT))
    ))   # fmt: skip


def on_own_canvases(left: Subject, right: Subject) -> Fusion:
    """Each adapter draws its half by itself, from a prompt of its own."""
    return in_halves_with_prompts(left, right, own_canvas=True)


WAYS: dict[str, Way] = {
    "both everywhere": (SQUARE, everywhere, both),
    "each in its half": (SQUARE, in_halves, both),
    "each in its half, with its own prompt": (SQUARE, in_halves_with_prompts, both),
    "both everywhere, wide": (WIDE, everywhere, both),
    "each in its half, wide": (WIDE, in_halves, both),
    "each in its half, with its own prompt, wide": (WIDE, in_halves_with_prompts, both),
    "each on its own canvas, wide": (WIDE, on_own_canvases, both),
}


def sides(picture: Image.Image) -> Tensor:
    """The left and the right half, each as a square [2, 3, 64, 64] in 0 … 1."""
    if picture.width == picture.height:
        return halves(picture)
    side = picture.height
    return torch.stack([pixels_of(picture.crop((left, 0, left + side, side))) for left in (0, side)])


def scores(judge: Judge, left: str, right: str, picture: Image.Image) -> tuple[float, float, bool]:
    """Probability of each subject in its half, and whether both are what the judge names first."""
    seen = judge.classify_pixels(sides(picture)).objects
    indices = [judge.object_index(name) for name in (left, right)]
    named = seen.argmax(1).tolist() == indices
    return float(seen[0, indices[0]]), float(seen[1, indices[1]]), named


def drawn(model: BaseModel, way: Way, left: Subject, right: Subject) -> list[Image.Image]:
    """One pair in one way, every seed."""
    (width, height), mix, prompt = way
    request = DrawRequest(prompt=prompt(left, right), seed=0, count=SEEDS, width=width, height=height)
    return draw(model, request, mix(left, right))


def taught(home: Path, name: str) -> Subject:
    """A subject's adapter, trained where it is not there yet."""
    file = home / "adapters" / f"{name}.safetensors"
    if not file.exists():
        train(name, name, 0, home, [], trigger=TRIGGERS[name])
    return Subject(name, load_adapter(file))


def render(result: Mapping[str, Any]) -> str:
    """The page."""
    rows, lines = result["rows"], []
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        by_pair: dict[tuple[str, str], list[float]] = {}
        for row in own:
            by_pair.setdefault((row["first"], row["second"]), []).append(min(row["left"], row["right"]))
        worse = [mean(values) for values in by_pair.values()]
        low, high = interval(worse)
        left, right, named = (mean(row[key] for row in own) for key in ("left", "right", "both"))
        lines.append(f"| {way} | {mean(worse):.2f} ({low:.2f} … {high:.2f}) | {left:.2f} | {right:.2f} | {named:.0%} |")
    pairs = {(row["first"], row["second"]) for row in rows}
    return TEXT.format(
        subjects=len({name for pair in pairs for name in pair}), pairs=len(pairs), seeds=SEEDS, gate=result["gate"],
        lines="\n".join(lines).replace("%", " %"), machine=in_words(result["machine"]),
    )   # fmt: skip


def sheet(shown: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """A row for each way."""
    rows = [contact_sheet(pictures, len(pictures)) for pictures in shown.values()]
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def main() -> None:
    """Teach, draw, judge and write, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("build/two_subjects"), help="where the adapters are kept")
    parser.add_argument("--subjects", nargs="+", default=list(TRIGGERS))
    parser.add_argument("--gate", type=float, default=0.0, help="what pairs_gate says of things that the base knows")
    parser.add_argument("--out", type=Path, default=RESULTS / "two_subjects.json")
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    if options.render:
        PAGE.write_text(render(json.loads(options.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    model, judge = load("embedded", "cpu"), Judge.load()
    subjects, rows = [taught(options.home, name) for name in options.subjects], []
    shown: dict[str, list[Image.Image]] = {way: [] for way in WAYS}
    for left, right in permutations(subjects, 2):
        for name, way in WAYS.items():
            pictures = drawn(model, way, left, right)
            shown[name].append(pictures[0])
            for seed, picture in enumerate(pictures):
                one, other, named = scores(judge, left.name, right.name, picture)
                rows.append({"way": name, "first": left.name, "second": right.name, "seed": seed, "left": one,
                             "right": other, "both": named})   # fmt: skip
        print(left.name, right.name, {name: round(mean(min(r["left"], r["right"]) for r in rows if r["way"] == name), 3)
                                      for name in WAYS}, flush=True)   # fmt: skip
        sheet(shown).save(options.home / "sheet.png")
        result = {"machine": describe_machine(), "gate": options.gate, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
