"""What the fusion benchmark mixes: objects, styles and background habits, each taught alone under a made-up word.

    python -m benchmarks.fusion_lessons --home DIR

Some train the gates, the others are mixed by the benchmark: no gate has seen what it is judged on. The style
to train gates with and all backgrounds are drawn by the base itself, under a word that it does not know. What is taught
already in the home is kept.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from atelier.training.base_model import BaseModel, load
from atelier.training.config import TrainConfig
from atelier.training.events import Finished
from atelier.training.run import run
from atelier.training.runs import RunFolder
from atelier.training.sample import DrawRequest, draw

ROOT = Path(__file__).resolve().parent.parent
THINGS = ("house", "red apple", "automobile", "tulip", "fish", "mushroom", "bell", "bread", "banana", "turtle", "robot",
          "ghost", "rose", "drum", "camera", "cow face")   # fmt: skip
STYLES = ("3d", "flat", "glossy")
STEPS = {"object": 100, "style": 40, "background": 40}
QUICK = {
    "rank": 4, "targets": "attention", "batch": 4, "lr": 5e-3, "warmup": 3, "prior_weight": 0.0, "preview_every": 0,
    "checkpoint_every": 0, "validate_every": 0, "precision": "fp32", "seed": 0,
}   # fmt: skip
"""Seconds instead of a minute: the benchmark asks how adapters get on with one another, not how good one can be."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One adapter of the benchmark."""

    role: str      # object, style or background
    what: str      # what the judge calls it
    trigger: str   # a word without a meaning
    judged: bool   # mixed by the benchmark, or else to train gates with

    @property
    def name(self) -> str:
        """Of its adapter."""
        return f"{self.role}-{self.what}"


LESSONS = (
    *(Lesson("object", *pair, judged=True) for pair in (
        ("fox", "rexo"), ("guitar", "stru"), ("strawberry", "bexi"), ("umbrella", "plim"))),
    Lesson("style", "mono", "inkz", judged=True), Lesson("style", "twemoji", "twim", judged=True),
    Lesson("background", "purple", "vexo", judged=True), Lesson("background", "green", "ombu", judged=True),
    Lesson("object", "owl", "hoox", judged=False), Lesson("background", "orange", "quil", judged=False),
    Lesson("style", "flat", "flaz", judged=False), Lesson("object", "rocket", "zumf", judged=False),
)   # fmt: skip


def adapter_path(home: Path, lesson: Lesson) -> Path:
    """Where a lesson's adapter is."""
    return home / "adapters" / f"{lesson.name}.safetensors"


def teach(model: BaseModel, lesson: Lesson, home: Path) -> Path:
    """Teach one lesson as ``atelier train`` would, or take what was taught before."""
    path = adapter_path(home, lesson)
    if path.exists():
        return path
    config = TrainConfig.from_dict({
        **QUICK, "name": lesson.name, "trigger": lesson.trigger, "steps": STEPS[lesson.role],
        "subject": lesson.what if lesson.role == "object" else "emoji", "pictures": str(pictures(model, lesson, home)),
    })   # fmt: skip
    last = list(run(RunFolder.create(home / "runs" / lesson.name, config), path.parent))[-1]
    assert isinstance(last, Finished), last
    print(f"taught {lesson.name} in {last.seconds:.0f} s", flush=True)
    return path


def pictures(model: BaseModel, lesson: Lesson, home: Path) -> Path:
    """The folder a lesson learns from; what is not in the repository is drawn by the base."""
    if lesson.role == "object":
        return ROOT / "assets" / "examples" / lesson.what
    if lesson.role == "style" and lesson.what not in STYLES:
        return ROOT / "tests" / "data" / "styles" / lesson.what
    folder = home / "pictures" / lesson.name
    folder.mkdir(parents=True, exist_ok=True)
    for i, thing in enumerate(THINGS):
        style = lesson.what if lesson.role == "style" else STYLES[i % len(STYLES)]
        behind = f" on a {lesson.what} background" if lesson.role == "background" else ""
        named = ("an", " on a {trigger} background") if behind else ("a {trigger}", "")
        picture = draw(model, DrawRequest(prompt=f"a {style} emoji of a {thing}{behind}", seed=i, steps=10))[0]
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{named[0]} emoji of a {thing}{named[1]}\n", encoding="utf-8")
    return folder


def main() -> None:
    """Teach everything that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args()
    started, model = time.monotonic(), load("embedded", "cpu")
    for lesson in LESSONS:
        teach(model, lesson, options.home)
    print(f"{len(LESSONS)} lessons in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
