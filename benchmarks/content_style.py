"""Mix held-out objects with held-out styles, every way Atelier can, and compare with the true pictures.

    python -m benchmarks.content_style [--quick] [--objects fox …] [--styles neon …] [--home DIR]
    python -m benchmarks.content_style --render        docs/content_style.md from the results

Each object and each style is taught alone, as a LoRA of rank 4 and as half of a split adapter of rank 16, so that the
two that are mixed hold the same number of values in every method. The judge knows all objects and styles and has no
part in training; the truth, the object in that very style, was shown to nobody. With --home, what was taught and what
was measured is kept, and a run that was cut off goes on. The last line is the summary.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python -m benchmarks.content_style` works too
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.fusion.batched_strengths import combine_batched
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.data.prepare import encode_dataset, scan_pictures
from atelier.training.embedded_base.judge import Judge
from atelier.training.loop.batch import AdapterExamples
from atelier.training.recipes.combine_two import METHOD_STEPS, combine_adapters, training_config
from atelier.training.recipes.companions import with_role_caption
from atelier.training.runs.run import run
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.support.content_style_page import DRAWINGS, Row, render, summary, table
from benchmarks.support.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "content_style.md"
OBJECTS = ("fox", "guitar", "owl", "rocket", "strawberry", "umbrella")
STYLES = ("pixel art", "blueprint", "neon", "two-colour print", "pencil")
WORDS = {"content": "zq", "style": "zs"}
KINDS: dict[str, dict[str, Any]] = {"lora": {"rank": 4}, "split": {"rank": 16}}


class Way(NamedTuple):
    """One way to mix."""

    kind: str                      # what is mixed: two LoRAs or two halves
    method: str                    # of ``atelier make``; empty for one adapter alone
    at: tuple[float, float] = (1.0, 1.0)   # content and style strength
    steps: int = 0                 # of training after the mixing


# The first two are no mixes, but what one adapter does alone. "Apart" leaves out what both halves add together.
WAYS = {
    "content alone": Way("lora", "", (1.0, 0.0)),
    "style alone": Way("lora", "", (0.0, 1.0)),
    "sum": Way("lora", "sum"),
    "sum, style ¾": Way("lora", "sum", (1.0, 0.75)),
    "np": Way("lora", "np"),
    "np, style ¾": Way("lora", "np", (1.0, 0.75)),
    "k": Way("lora", "k"),
    "break-for-make": Way("split", "break-for-make"),
    "break-for-make, apart": Way("split", "sum"),
    "break-for-make, apart, style ¾": Way("split", "sum", (1.0, 0.75)),
    "break-for-make, made": Way("split", "break-for-make", steps=METHOD_STEPS["break-for-make"]),
    "zip": Way("lora", "zip", steps=METHOD_STEPS["zip"]),
}
TILE = 64


def main() -> None:
    """Measure, or render what was measured."""
    options = _options()
    if options.render:
        PAGE.write_text(render(json.loads((RESULTS / "content_style.json").read_text())), encoding="utf-8")
        return
    torch.manual_seed(0)
    model, judge = load("embedded", "cpu"), Judge.load()
    with tempfile.TemporaryDirectory() as folder:
        rows, pictures = measure(model, judge, options, options.home or Path(folder))
    result = {"machine": describe_machine(), "steps": options.steps, "rows": [asdict(row) for row in rows]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sheet(pictures, options.objects, options.styles).save(options.out.with_suffix(".png"), optimize=True)
    print("\n".join(table(rows)))
    print(summary(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="two objects, one style: at most a quarter of an hour")
    parser.add_argument("--objects", nargs="+")
    parser.add_argument("--styles", nargs="+")
    parser.add_argument("--steps", type=int, default=100, help="of each lesson")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of every lesson")
    parser.add_argument("--home", type=Path, help="keep what was taught here, and use what is there")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.objects = options.objects or OBJECTS[: 2 if options.quick else None]
    options.styles = options.styles or STYLES[: 1 if options.quick else None]
    options.out = options.out or RESULTS / ("content_style_quick.json" if options.quick else "content_style.json")
    return options


def measure(
    model: BaseModel, judge: Judge, options: argparse.Namespace, home: Path
) -> tuple[list[Row], dict[tuple[str, str, str], Image.Image]]:
    """All rows, and the first drawing of each by method, object and style; what takes long, training, comes last."""
    lessons = {
        (role, kind, name): taught(model, role, kind, name, options, home)
        for role, names in (("content", options.objects), ("style", options.styles)) for name in names for kind in KINDS
    }   # fmt: skip
    rows: list[Row] = []
    pictures: dict[tuple[str, str, str], Image.Image] = {}
    for name, way in sorted(WAYS.items(), key=lambda item: item[1].steps):
        for style, thing in product(options.styles, options.objects):
            parts = [lessons["content", way.kind, thing], lessons["style", way.kind, style]]
            kept = home / "measured" / f"{name} {thing} {style}".replace(" ", "_")
            if not kept.with_suffix(".json").exists():
                row, drawn = measured(model, judge, (name, thing, style), *parts)
                kept.parent.mkdir(exist_ok=True)
                drawn.save(kept.with_suffix(".png"))
                kept.with_suffix(".json").write_text(json.dumps(asdict(row)), encoding="utf-8")
                print(json.dumps(asdict(row)), flush=True)
            rows.append(Row(**json.loads(kept.with_suffix(".json").read_text())))
            pictures[name, thing, style] = Image.open(kept.with_suffix(".png"))
    return rows, pictures


def measured(
    model: BaseModel, judge: Judge, what: tuple[str, str, str], content: AdapterExamples, style: AdapterExamples
) -> tuple[Row, Image.Image]:
    """Mix and judge; and the first drawing."""
    name, thing, look = what
    started = time.monotonic()
    mixed = mix(model, WAYS[name], content, style)
    seconds = time.monotonic() - started
    drawn = draw_all(model, mixed, thing)
    return Row(*what, *scores(judge, drawn, thing, look), round(seconds, 1)), drawn[0]


def taught(
    model: BaseModel, role: str, kind: str, name: str, options: argparse.Namespace, home: Path
) -> AdapterExamples:
    """Teach one thing or style, as ``atelier train`` would, or read what was taught before."""
    folder = ROOT / ("assets/examples" if role == "content" else "tests/data/styles") / name.replace(" ", "_")
    preset = {key: value for key, value in load_preset("normal", "embedded").items() if key != "rank"}
    own = {"role": role} if kind == "split" else {}
    config = with_role_caption(TrainConfig.from_dict({
        **preset, "name": f"{name}-{kind}", "trigger": WORDS[role], "subject": name if role == "content" else "emoji",
        "pictures": str(folder), "kind": kind, "adapter": {**KINDS[kind], **own}, "steps": options.steps,
        "preview_every": 0, "checkpoint_every": 0, "precision": "fp32",
        **dict(pair.split("=", 1) for pair in options.set),
    }))   # fmt: skip
    path = home / "adapters" / f"{config.name}.safetensors"
    if not path.exists():
        last = list(run(RunFolder.create(home / "runs" / config.name, config), path.parent))[-1]
        assert isinstance(last, Finished), last
        print(f"taught {config.name} in {last.seconds:.0f} s", flush=True)
    return AdapterExamples(load_adapter(path), encode_dataset(model, scan_pictures(config)))


def mix(model: BaseModel, way: Way, content: AdapterExamples, style: AdapterExamples) -> Mix:
    """Both in one."""
    if not way.method:
        return Mix(((content.adapters, way.at[0]), (style.adapters, way.at[1])))
    if not way.steps:
        return Mix(((combine_batched(model.models(), content.adapters, style.adapters, way.method, [way.at]), 1.0),))
    lr = load_preset("normal", "embedded")["lr"]
    config = training_config(way.method, steps=way.steps, batch=4, lr=lr, seed=0)
    *_, made = combine_adapters(model, content, style, way.method, config)
    assert isinstance(made, AdapterSet)
    return Mix(((made, 1.0),))


def draw_all(model: BaseModel, mixed: Mix, thing: str) -> list[Image.Image]:
    """Drawings from the one prompt that asks for both; no caption of any lesson says that."""
    prompt = f"a {WORDS['style']} emoji of a {WORDS['content']} {thing}"
    return draw(model, DrawRequest(prompt=prompt, seed=1000, count=DRAWINGS), mixed)


def truth(thing: str, style: str) -> list[Image.Image]:
    """The object in that style: what nobody was shown."""
    folder = ROOT / "tests" / "data" / "truth" / style.replace(" ", "_")
    return [Image.open(path) for path in sorted(folder.glob(f"{thing}_*.png"))]


def scores(judge: Judge, drawn: Sequence[Image.Image], thing: str, style: str) -> tuple[float, float, float]:
    """Object score, style score, distance to the truth."""
    prediction, true = judge.classify(drawn), judge.classify(truth(thing, style)).features
    objects, styles = prediction.objects[:, judge.object_index(thing)], prediction.styles[:, judge.style_index(style)]
    return objects.mean().item(), styles.mean().item(), 1 - (prediction.features @ true.T).mean().item()


def sheet(
    pictures: dict[tuple[str, str, str], Image.Image], objects: Sequence[str], styles: Sequence[str]
) -> Image.Image:
    """Rows are methods and last the truth, columns are pairs."""
    pairs = [(thing, style) for style in styles for thing in objects]
    page = Image.new("RGB", (TILE * len(pairs), TILE * (len(WAYS) + 1)), "white")
    for column, (thing, style) in enumerate(pairs):
        shown = [*(pictures[method, thing, style] for method in WAYS), truth(thing, style)[0]]
        for line, picture in enumerate(shown):
            page.paste(picture.convert("RGB"), (column * TILE, line * TILE))
    return page


if __name__ == "__main__":
    main()
