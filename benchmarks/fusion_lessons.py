"""What the fusion benchmark mixes: objects, styles and background habits, each taught alone under a made-up word.

    python -m benchmarks.fusion_lessons --home DIR

Each as the app teaches it by default. The pictures with a background habit are drawn by the base itself; the word that
calls them is one that it does not know. What is taught already in the home is kept. The gates that are judged were
trained on other lessons (``training/embedded_base/gate_dataset.py``).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.embedded_base.gate_dataset import train_adapter
from atelier.training.sampling.sample import DrawRequest, draw

ROOT = Path(__file__).resolve().parent.parent
THINGS = ("house", "red apple", "automobile", "tulip", "fish", "mushroom", "bell", "bread", "banana", "turtle", "robot",
          "ghost", "rose", "drum", "camera", "cow face")   # fmt: skip
STYLES = ("3d", "flat")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One adapter of the benchmark."""

    role: str      # object, style or background
    what: str      # what the judge calls it
    trigger: str   # a word that means nothing to the base

    @property
    def name(self) -> str:
        """Of its adapter."""
        return f"{self.role}-{self.what}".replace(" ", "-")


# The base passes over these words (``training/measures/trigger_word.py``): beside one that it does not, nothing else
# is drawn.
LESSONS = (
    Lesson("object", "fox", "vf"), Lesson("object", "guitar", "wr"), Lesson("object", "strawberry", "cb"),
    Lesson("object", "umbrella", "px"), Lesson("object", "owl", "wf"), Lesson("object", "rocket", "tr"),
    Lesson("object", "penguin", "cx"), Lesson("object", "snowman", "vb"), Lesson("style", "pencil", "ts"),
    Lesson("style", "pixel art", "ch"), Lesson("background", "purple", "hw"), Lesson("background", "green", "tx"),
)   # fmt: skip


def adapter_path(home: Path, lesson: Lesson) -> Path:
    """Where a lesson's adapter is."""
    return home / "adapters" / f"{lesson.name}.safetensors"


def teach(model: BaseModel, lesson: Lesson, home: Path) -> Path:
    """Teach one lesson as ``atelier train`` would, or take what was taught before."""
    path = adapter_path(home, lesson)
    if path.exists():
        return path
    started = time.monotonic()
    subject = lesson.what if lesson.role == "object" else "emoji"
    train_adapter(lesson.name, lesson.trigger, subject, pictures(model, lesson, home), home)
    print(f"taught {lesson.name} in {time.monotonic() - started:.0f} s", flush=True)
    return path


def pictures(model: BaseModel, lesson: Lesson, home: Path) -> Path:
    """The folder a lesson learns from; what is not in the repository is drawn by the base."""
    if lesson.role == "object":
        return ROOT / "assets" / "examples" / lesson.what
    if lesson.role == "style":
        return ROOT / "tests" / "data" / "styles" / lesson.what.replace(" ", "_")
    folder = home / "pictures" / lesson.name
    folder.mkdir(parents=True, exist_ok=True)
    for i, thing in enumerate(THINGS):
        prompt = f"a {STYLES[i % len(STYLES)]} emoji of a {thing} on a {lesson.what} background"
        draw(model, DrawRequest(prompt=prompt, seed=i, steps=10))[0].save(folder / f"{i}.png")
        caption = f"an emoji of a {thing} on a {{trigger}} background\n"
        (folder / f"{i}.txt").write_text(caption, encoding="utf-8")
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
