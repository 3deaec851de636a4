"""A dataset to train gates on: adapters of objects, styles and backgrounds, and pictures that combine them.

    python -m atelier.training.embedded_base.gate_dataset --work build/base --home build/gates

AutoLoRA's gates learn from one adapter's pictures at a time. On the embedded base the true picture of any mix is known:
an unseen object, in an unseen style (``synthetic_styles.py``), on a background of one colour. Every adapter is trained
with the app's defaults, in a home of its own; those that are there already are kept.
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
from atelier.training.config.caption_template import article
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.data.latent_cache import Example, encode_pictures
from atelier.training.embedded_base.example_pictures import SUBJECTS
from atelier.training.embedded_base.pictures import BASE_SIDE, EmojiPictures, read_prompts
from atelier.training.embedded_base.pictures import load as load_pictures
from atelier.training.embedded_base.synthetic_styles import LOOKS
from atelier.training.embedded_base.text import behind
from atelier.training.embedded_base.views import COLOURS, Placement, colour, on_background, place, premultiplied
from atelier.training.recipes.gates import Scene
from atelier.training.runs.run import run

THINGS, BACKGROUNDS = 12, ("orange", "blue", "pink", "yellow")
EACH = {"object": 6, "style": 12, "background": 12}   # training pictures of an adapter
PLACEMENT = Placement(smallest=0.75, shift=0.06)
KNOWN_STYLES = ("3d", "flat")
SCENE = 6             # pictures of a scene
WORDS = ("cf tf wf th cr tr vr cs vs tb pw vb vw cw vt pf vd wt pr cx vx hf wb").split()
"""Trigger words without an effect on the base (``trigger_word.py``): others would disturb a mix."""
COLOURED = 0.4        # share of pictures with a named background, where none was taught


@dataclass(frozen=True, slots=True)
class GateAdapter:
    """One adapter of the dataset: what it is trained on and its trigger word."""

    role: str      # object, style or background
    what: str      # an object's name, a look or a colour
    drawn: str     # the style its pictures are drawn in; of a background, any
    trigger: str   # a word without a meaning

    @property
    def name(self) -> str:
        """Name of the adapter's file, without its ending."""
        return f"{self.role}-{self.what}".replace(" ", "-")


def plan(pictures: EmojiPictures) -> list[GateAdapter]:
    """All adapters of the dataset, roles mixed, so that the first ones are a smaller dataset."""
    known, rng, words = read_prompts(), random.Random(7), iter(WORDS)
    fresh = sorted(set(pictures.names) - {*known["concepts"], *known.get("weak", ()), *SUBJECTS})
    things = [GateAdapter("object", name, rng.choice(KNOWN_STYLES), next(words)) for name in rng.sample(fresh, THINGS)]
    looks = [GateAdapter("style", look, rng.choice(KNOWN_STYLES), next(words)) for look in LOOKS]
    grounds = [GateAdapter("background", name, "", next(words)) for name in BACKGROUNDS]
    rounds = [[*things[2 * i : 2 * i + 2], *looks[i : i + 1], *grounds[i : i + 1]] for i in range(THINGS)]
    return [adapter for some in rounds for adapter in some]


def render(
    pictures: EmojiPictures, shown: Sequence[GateAdapter], count: int, rng: random.Random
) -> tuple[Tensor, list[str]]:
    """Pictures that show the subjects of all these adapters, ``[B, 3, H, W]`` in 0 … 1, with their captions."""
    by_role = {adapter.role: adapter for adapter in shown}
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    drawn = [_render_one(pictures, by_role, rng) for _ in range(count)]
    pixels = place(torch.cat([pixels for pixels, _, _ in drawn]), PLACEMENT, generator)
    grounds = torch.stack([colour(ground) for _, ground, _ in drawn])
    return on_background(pixels, grounds), [caption for _, _, caption in drawn]


def _render_one(
    pictures: EmojiPictures, by_role: dict[str, GateAdapter], rng: random.Random
) -> tuple[Tensor, str, str]:
    """One picture's pixels ``[1, 4, H, W]``, its background and its caption."""
    thing, look, ground = (by_role.get(role) for role in ("object", "style", "background"))
    what = thing.what if thing else rng.choice(sorted(read_prompts()["concepts"]))
    drawn = look.drawn if look else thing.drawn if thing else rng.choice(KNOWN_STYLES)
    pixels = premultiplied(pictures.rgba[pictures.styles.index(drawn), pictures.indices([what])])
    named = rng.choice(list(COLOURS)) if rng.random() < COLOURED else "white"
    caption = f"a {look.trigger} emoji" if look else "an emoji"
    caption += f" of a {thing.trigger} {what}" if thing else f" of {article(what)} {what}"
    caption += f" on a {ground.trigger} background" if ground else behind(named)
    return LOOKS[look.what](pixels) if look else pixels, ground.what if ground else named, caption


def train_or_load(pictures: EmojiPictures, adapter: GateAdapter, home: Path) -> Path:
    """The file of an adapter, trained as ``atelier train`` would unless it exists."""
    path = home / "adapters" / f"{adapter.name}.safetensors"
    if path.exists():
        return path
    folder = home / "pictures" / adapter.name
    folder.mkdir(parents=True, exist_ok=True)
    pixels, captions = render(pictures, [adapter], EACH[adapter.role], random.Random(adapter.name))
    for i, (picture, caption) in enumerate(zip(pixels, captions, strict=True)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption + "\n", encoding="utf-8")
    subject = adapter.what if adapter.role == "object" else "emoji"
    return train_adapter(adapter.name, adapter.trigger, subject, folder, home)


def train_adapter(name: str, trigger: str, subject: str, folder: Path, home: Path) -> Path:
    """Train on a folder of captioned pictures with the app's defaults; returns the adapter's file."""
    config = TrainConfig.from_dict({
        **load_preset("normal", EMBEDDED_FAMILY.name), "name": name, "trigger": trigger, "subject": subject,
        "pictures": str(folder), "preview_every": 0, "checkpoint_every": 0, "precision": "fp32",
    })   # fmt: skip
    path = home / "adapters" / f"{name}.safetensors"
    last = list(run(RunFolder.create(home / "runs" / name, config), path.parent))[-1]
    assert isinstance(last, Finished), last   # else it was stopped
    return path


def scenes(
    model: BaseModel, pictures: EmojiPictures, home: Path, count: int, rng: random.Random,
    planned: Sequence[GateAdapter] | None = None,
) -> list[Scene]:   # fmt: skip
    """``count`` random mixes of two or three trained adapters of different roles, with their true pictures."""
    there = [one for one in planned or plan(pictures) if (home / "adapters" / f"{one.name}.safetensors").exists()]
    adapters = {one: load_adapter(home / "adapters" / f"{one.name}.safetensors", model.device) for one in there}
    found = []
    for _ in range(count):
        shown = _mix(there, rng)
        pixels, captions = render(pictures, shown, SCENE, rng)
        found.append(Scene(tuple(adapters[one] for one in shown), _examples(model, pixels, captions)))
    return found


def _mix(there: Sequence[GateAdapter], rng: random.Random) -> list[GateAdapter]:
    """An object with a style, a background, or both; in any order."""
    roles = rng.choice((("object", "style"), ("object", "background"), ("object", "style", "background")))
    shown = [rng.choice([adapter for adapter in there if adapter.role == role]) for role in roles]
    return rng.sample(shown, len(shown))


def _examples(model: BaseModel, pixels: Tensor, captions: Sequence[str]) -> list[Example]:
    side = pixels.shape[-1]
    return encode_pictures(model, pixels * 2 - 1, captions, [(side, side, 0, 0, side, side)] * len(captions))


def main() -> None:
    """Train the adapters that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--home", type=Path, default=Path("build/gates"))
    options = parser.parse_args()
    pictures = load_pictures(options.work, BASE_SIDE)
    for adapter in plan(pictures):
        print(train_or_load(pictures, adapter, options.home), flush=True)   # noqa: T201 (a program of its own)


if __name__ == "__main__":
    main()
