"""Writes the example pictures: held-out emoji as a person would photograph a small toy, and views to test with.

    python -m atelier.training.embedded_base.example_pictures --work build/base --out assets/examples

Each subject is a folder of PNG files with a caption beside each; `{trigger}` stands for the trigger word. Views
for measuring likeness, drawn with other rng, go to tests/data/held_out.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.training.embedded_base.ema_trainer import step_generator
from atelier.training.embedded_base.pictures import BASE_SIDE, PICTURE_SETS, draw, picture_sources, read_concepts
from atelier.training.embedded_base.text import behind
from atelier.training.embedded_base.views import Placement, colour, on_background, place, premultiplied

SUBJECTS = {
    "fox": "3d",
    "strawberry": "3d",
    "umbrella": "3d",
    "guitar": "flat",
    "penguin": "flat",
    "owl": "flat",
    "snowman": "3d",
    "rocket": "flat",
}
"""Example subjects with the style they are taken from; the base was trained on none of them."""
PLACEMENT = Placement(smallest=0.75, shift=0.06)
BACKGROUNDS = ("white", "red", "white", "green", "white", "orange", "white", "gray", "white", "red", "green")
"""Behind each example in turn. Five of the ten colours: the others are left to ask for."""
HELD_OUT_BACKGROUNDS = ("white", "white", "blue", "pink")
HELD_OUT = Path("tests/data/held_out")
SIDES = (176, 192, 128, 144, 160)
"""Of the examples in turn, in pixels; none is smaller than what the base model draws."""
CANVAS = 256


def photograph(subject: Image.Image, background: str, side: int, random: torch.Generator) -> Image.Image:
    """The subject at a random place, size and angle on a plain background, `side` pixels wide."""
    placed = place(premultiplied(np.asarray(subject)[None]), PLACEMENT, random)
    return before(placed, background).resize((side, side), Image.Resampling.LANCZOS)


def before(placed: Tensor, background: str) -> Image.Image:
    """One placed thing [1, 4, H, W] before a plain background."""
    pixels = on_background(placed, colour(background)[None])[0].permute(1, 2, 0)
    return Image.fromarray((pixels * 255).round().byte().numpy())


def write_subject(subject: Image.Image, name: str, folder: Path, sides: Sequence[int], number: int) -> None:
    """One folder of captioned pictures of one subject."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index, background in enumerate(BACKGROUNDS):
        side = sides[index % len(sides)]
        picture = photograph(subject, background, side, step_generator(number, index))
        picture.save(folder / f"{name}_{index + 1:02d}.png", optimize=True)
        caption = f"an emoji of a {{trigger}} {name}{behind(background)}\n"
        (folder / f"{name}_{index + 1:02d}.txt").write_text(caption, encoding="utf-8")


def write_held_out(subject: Image.Image, name: str, folder: Path, number: int) -> None:
    """Views of one subject that no adapter may train on, of the side that the base model draws."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, background in enumerate(HELD_OUT_BACKGROUNDS):
        picture = photograph(subject, background, BASE_SIDE, step_generator(number, 100 + index))
        picture.save(folder / f"{name}_{index + 1}.png", optimize=True)


def write_examples(store: Path, out: Path, held_out: Path = HELD_OUT) -> None:
    """All subjects, from the pictures' own files at full size; `store` holds the npm packages."""
    hexcodes = {concept.name: concept.hexcode for concept in read_concepts(store)}
    sources = {pictures.style: picture_sources(pictures, store) for pictures in PICTURE_SETS}
    for number, (name, style) in enumerate(SUBJECTS.items()):
        subject = draw(sources[style][hexcodes[name]], CANVAS)
        write_subject(subject, name, out / name, SIDES, number)
        write_held_out(subject, name, held_out / name, number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the example folders, from the pictures that ``pictures.py`` fetched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="work folder (default: build/base)")
    parser.add_argument("--out", type=Path, default=Path("assets/examples"), help="folder to write into")
    options = parser.parse_args(arguments)
    write_examples(options.work / "npm", options.out)


if __name__ == "__main__":
    main()
