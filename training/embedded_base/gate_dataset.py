"""A school for gates: adapters of things, ways of drawing and backgrounds, and pictures of several of them at once.

    python -m atelier.training.embedded_base.gate_dataset --work build/base --home build/school

AutoLoRA's gates learn from one adapter's pictures at a time. On the embedded base the truth of any mix is known: a
thing nobody has seen, in a way of drawing nobody draws in (``synthetic_styles.py``), on a taught background. Every
lesson is taught as the app teaches it by default, in a home of its own; what is there already is kept.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.core.family import EMBEDDED_FAMILY
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.data.latent_cache import Example, encode_pictures
from atelier.training.embedded_base.example_pictures import SUBJECTS
from atelier.training.embedded_base.pictures import Pictures, read_prompts
from atelier.training.embedded_base.pictures import load as load_pictures
from atelier.training.embedded_base.synthetic_styles import LOOKS
from atelier.training.embedded_base.text import article, behind
from atelier.training.embedded_base.views import COLOURS, Placement, colour, on_background, place, premultiplied
from atelier.training.recipes.gates import Scene
from atelier.training.runs.run import run

THINGS, BACKGROUNDS = 12, ("orange", "blue", "pink", "yellow")
EACH = {"object": 6, "style": 12, "background": 12}   # pictures of a lesson
PLACEMENT = Placement(smallest=0.75, shift=0.06)
KNOWN_STYLES = ("3d", "flat", "glossy")
SCENE = 6             # pictures of a scene
WORDS = ("cf tf wf th cr tr vr cs vs tb pw vb vw cw vt pf vd wt pr cx vx hf wb").split()
"""What calls each lesson: words that the base passes over (``word_effect.py``), or else a mix would fail by them."""
COLOURED = 0.4        # share of pictures with a named background, where none was taught


@dataclass(frozen=True, slots=True)
class Lesson:
    """One adapter of the school."""

    role: str      # object, style or background
    what: str      # an object's name, a look or a colour
    drawn: str     # the style its pictures are drawn in; of a background, any
    trigger: str   # a word without a meaning

    @property
    def name(self) -> str:
        """Of its adapter."""
        return f"{self.role}-{self.what}".replace(" ", "-")


def plan(pictures: Pictures) -> list[Lesson]:
    """All lessons, roles mixed, so that the first ones are a smaller school."""
    known, dice, words = read_prompts(), random.Random(7), iter(WORDS)
    fresh = sorted(set(pictures.names) - {*known["concepts"], *known.get("weak", ()), *SUBJECTS})
    things = [Lesson("object", name, dice.choice(KNOWN_STYLES), next(words)) for name in dice.sample(fresh, THINGS)]
    looks = [Lesson("style", look, dice.choice(KNOWN_STYLES), next(words)) for look in LOOKS]
    grounds = [Lesson("background", name, "", next(words)) for name in BACKGROUNDS]
    rounds = [[*things[2 * i : 2 * i + 2], *looks[i : i + 1], *grounds[i : i + 1]] for i in range(THINGS)]
    return [lesson for some in rounds for lesson in some]


def paint(pictures: Pictures, asked: Sequence[Lesson], count: int, dice: random.Random) -> tuple[Tensor, list[str]]:
    """Pictures of all lessons at once, ``[B, 3, 64, 64]`` in 0 … 1, with their captions."""
    said = {lesson.role: lesson for lesson in asked}
    generator = torch.Generator().manual_seed(dice.getrandbits(32))
    drawn = [_one(pictures, said, dice) for _ in range(count)]
    pixels = place(torch.cat([pixels for pixels, _, _ in drawn]), PLACEMENT, generator)
    grounds = torch.stack([colour(ground) for _, ground, _ in drawn])
    return on_background(pixels, grounds), [caption for _, _, caption in drawn]


def _one(pictures: Pictures, said: dict[str, Lesson], dice: random.Random) -> tuple[Tensor, str, str]:
    """One picture's pixels ``[1, 4, 64, 64]``, its background and its caption."""
    thing, look, ground = (said.get(role) for role in ("object", "style", "background"))
    what = thing.what if thing else dice.choice(sorted(read_prompts()["concepts"]))
    drawn = look.drawn if look else thing.drawn if thing else dice.choice(KNOWN_STYLES)
    pixels = premultiplied(pictures.rgba[pictures.styles.index(drawn), pictures.indices([what])])
    named = dice.choice(list(COLOURS)) if dice.random() < COLOURED else "white"
    caption = f"a {look.trigger} emoji" if look else "an emoji"
    caption += f" of a {thing.trigger} {what}" if thing else f" of {article(what)} {what}"
    caption += f" on a {ground.trigger} background" if ground else behind(named)
    return LOOKS[look.what](pixels) if look else pixels, ground.what if ground else named, caption


def teach(pictures: Pictures, lesson: Lesson, home: Path) -> Path:
    """Teach one lesson as ``atelier train`` would, or take what was taught before."""
    path = home / "adapters" / f"{lesson.name}.safetensors"
    if path.exists():
        return path
    folder = home / "pictures" / lesson.name
    folder.mkdir(parents=True, exist_ok=True)
    pixels, captions = paint(pictures, [lesson], EACH[lesson.role], random.Random(lesson.name))
    for i, (picture, caption) in enumerate(zip(pixels, captions, strict=True)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption + "\n", encoding="utf-8")
    return taught(lesson.name, lesson.trigger, lesson.what if lesson.role == "object" else "emoji", folder, home)


def taught(name: str, trigger: str, subject: str, folder: Path, home: Path) -> Path:
    """Teach the embedded base a folder of captioned pictures as the app does by default; the adapter's file."""
    config = TrainConfig.from_dict({
        **load_preset("normal", EMBEDDED_FAMILY.name), "name": name, "trigger": trigger, "subject": subject,
        "pictures": str(folder), "preview_every": 0, "checkpoint_every": 0, "precision": "fp32",
    })   # fmt: skip
    path = home / "adapters" / f"{name}.safetensors"
    last = list(run(RunFolder.create(home / "runs" / name, config), path.parent))[-1]
    assert isinstance(last, Finished), last   # else it was told to end
    return path


def scenes(
    model: BaseModel, pictures: Pictures, home: Path, count: int, dice: random.Random,
    lessons: Sequence[Lesson] | None = None,
) -> list[Scene]:   # fmt: skip
    """So many mixes of two or three lessons of different roles that were taught in a home, with their truth."""
    there = [one for one in lessons or plan(pictures) if (home / "adapters" / f"{one.name}.safetensors").exists()]
    adapters = {one: load_adapter(home / "adapters" / f"{one.name}.safetensors", model.device) for one in there}
    found = []
    for _ in range(count):
        asked = _mix(there, dice)
        pixels, captions = paint(pictures, asked, SCENE, dice)
        found.append(Scene(tuple(adapters[one] for one in asked), _examples(model, pixels, captions)))
    return found


def _mix(there: Sequence[Lesson], dice: random.Random) -> list[Lesson]:
    """A thing with a look, a background, or both; in any order."""
    roles = dice.choice((("object", "style"), ("object", "background"), ("object", "style", "background")))
    asked = [dice.choice([lesson for lesson in there if lesson.role == role]) for role in roles]
    return dice.sample(asked, len(asked))


def _examples(model: BaseModel, pixels: Tensor, captions: Sequence[str]) -> list[Example]:
    side = pixels.shape[-1]
    return encode_pictures(model, pixels * 2 - 1, captions, [(side, side, 0, 0, side, side)] * len(captions))


def main() -> None:
    """Teach what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--home", type=Path, default=Path("build/school"))
    options = parser.parse_args()
    pictures = load_pictures(options.work)
    for lesson in plan(pictures):
        print(teach(pictures, lesson, options.home), flush=True)   # noqa: T201 (a program of its own)


if __name__ == "__main__":
    main()
