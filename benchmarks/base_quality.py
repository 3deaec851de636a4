"""How well a pipeline draws what the embedded base was trained on, by the judge.

    python -m benchmarks.base_quality --base assets/base --concepts 40 --out build/quality

Every object is asked for in every trained style with four seeds, twice on white and twice on a colour. Bars of
the project: object named first ≥ 70 %, style ≥ 90 %, background ≥ 90 %. Writes quality.json and a contact sheet.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from atelier.training.embedded_base.judge import Judge, background_colour
from atelier.training.embedded_base.pictures import PROMPTS, read_prompts
from atelier.training.embedded_base.text import caption

BARS = {"object": 0.70, "style": 0.90, "background": 0.90}
SEEDS = 4


@dataclass(frozen=True, slots=True)
class Task:
    """One picture to ask for."""

    concept: str
    style: str
    background: str
    seed: int

    @property
    def prompt(self) -> str:
        """The full caption."""
        return caption(self.concept, self.style, self.background)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge found in one picture."""

    task: Task
    object_right: bool
    style_right: bool
    background_right: bool
    taken_for: str


def tasks(words: dict[str, Any], concepts: Sequence[str]) -> list[Task]:
    """Every object × style × seed; the backgrounds rotate so that each colour is asked for equally often."""
    colours = [name for name in words["backgrounds"] if name != "white"]
    found = []
    for number, concept in enumerate(concepts):
        for row, style in enumerate(words["styles"]):
            for seed in range(SEEDS):
                colour = colours[(number + 3 * row + 5 * seed) % len(colours)]
                found.append(Task(concept, style, colour if seed % 2 else "white", seed))
    return found


def draw(pipeline: StableDiffusionPipeline, asked: Sequence[Task], batch: int) -> list[Image.Image]:
    """20 steps at guidance 3; each picture has its own seed, so the batch size does not matter."""
    pictures: list[Image.Image] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        generators = [torch.Generator().manual_seed(task.seed) for task in part]
        prompts = [task.prompt for task in part]
        drawn: Any = pipeline(prompts, num_inference_steps=20, guidance_scale=3.0, generator=generators)
        pictures += drawn.images
    return pictures


def judged(judge: Judge, asked: Sequence[Task], pictures: Sequence[Image.Image]) -> list[Verdict]:
    """The judge's first choices, picture by picture."""
    prediction = judge.classify(pictures)
    verdicts = []
    for task, picture, objects, styles in zip(asked, pictures, prediction.objects, prediction.styles, strict=True):
        taken_for = judge.object_names[int(objects.argmax())]
        style_right = judge.style_names[int(styles.argmax())] == task.style
        right = background_colour(picture) == task.background
        verdicts.append(Verdict(task, taken_for == task.concept, style_right, right, taken_for))
    return verdicts


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of pictures with the right object, style and (of those on a colour) background."""
    coloured = [verdict for verdict in verdicts if verdict.task.background != "white"]
    return {
        "object": sum(verdict.object_right for verdict in verdicts) / len(verdicts),
        "style": sum(verdict.style_right for verdict in verdicts) / len(verdicts),
        "background": sum(verdict.background_right for verdict in coloured) / len(coloured),
        "white": sum(v.background_right for v in verdicts if v.task.background == "white")
        / max(1, len(verdicts) - len(coloured)),
    }


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """All pictures in rows, two pixels apart."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), "gray")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (column * (width + 2), row * (height + 2)))
    return sheet


def weakest(verdicts: Sequence[Verdict], count: int = 15) -> list[str]:
    """The objects that were recognised least often, with their share."""
    right: dict[str, list[bool]] = {}
    for verdict in verdicts:
        right.setdefault(verdict.task.concept, []).append(verdict.object_right)
    ranked = sorted(right, key=lambda name: sum(right[name]) / len(right[name]))
    return [f"{name} {sum(right[name]) / len(right[name]):.2f}" for name in ranked[:count]]


def main() -> None:
    """Draw, judge, print a table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("assets/base"))
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    parser.add_argument("--concepts", type=int, default=0, help="evenly chosen objects; 0 means all")
    parser.add_argument("--batch", type=int, default=12)
    options = parser.parse_args()
    words = read_prompts(PROMPTS)
    stride = max(1, len(words["concepts"]) // options.concepts) if options.concepts else 1
    asked = tasks(words, words["concepts"][::stride])
    pipeline = StableDiffusionPipeline.from_pretrained(options.base, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    start = time.monotonic()
    pictures = draw(pipeline, asked, options.batch)
    seconds = time.monotonic() - start
    verdicts = judged(Judge.load(), asked, pictures)
    groups = {style: [v for v in verdicts if v.task.style == style] for style in words["styles"]} | {"all": verdicts}
    table = {name: shares(group) for name, group in groups.items()}
    for name, row in table.items():
        print(f"{name:8s}" + "".join(f"  {key} {value:.3f}" for key, value in row.items()))
    misses = [key for key, bar in BARS.items() if table["all"][key] < bar]
    print(f"{len(pictures)} pictures in {seconds:.0f} s; below the bar: {', '.join(misses) or 'nothing'}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"shares": table, "weakest": weakest(verdicts), "verdicts": [asdict(verdict) for verdict in verdicts]}
    (options.out / "quality.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    contact_sheet(pictures, 24).save(options.out / "sheet.png")


if __name__ == "__main__":
    main()
