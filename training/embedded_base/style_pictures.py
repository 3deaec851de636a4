"""Writes pictures to learn the held-out styles from, and the truth: held-out objects in held-out styles.

    python -m atelier.training.embedded_base.style_pictures --work build/base --out tests/data

``styles/<style>`` shows things the base knows, each with a caption; ``truth/<style>`` shows the example subjects, which
neither the base nor any adapter has seen in that style. Together they say how well a content and a style were mixed.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from atelier.training.embedded_base.ema_trainer import step_generator
from atelier.training.embedded_base.example_pictures import BACKGROUNDS, SUBJECTS, photograph
from atelier.training.embedded_base.pictures import EmojiPictures, load, read_prompts
from atelier.training.embedded_base.text import behind
from atelier.training.embedded_base.views import COLOURS

THINGS = (
    "house", "red apple", "automobile", "tulip", "key", "fish", "mushroom", "bell", "bread", "tiger face",
    "banana", "turtle", "bicycle", "ice cream", "robot", "ghost", "cow face", "rose", "drum", "camera",
)   # fmt: skip
"""Objects in the training pictures of a style: known ones, of many shapes."""
SIDE = 64
VIEWS = 2
_FIRST = 200   # first seed, apart from those of the example pictures


def write_styles(pictures: EmojiPictures, out: Path) -> None:
    """One folder of captioned pictures and one of true pictures for each held-out style."""
    for style in read_prompts()["held_out_styles"]:
        row = pictures.rgba[pictures.styles.index(style)]
        things = zip(THINGS, pictures.indices(THINGS), strict=True)
        folder = _emptied(out / "styles" / style)
        for number, (name, index) in enumerate(things):
            background = BACKGROUNDS[number % len(BACKGROUNDS)]
            stem = name.replace(" ", "_")
            _view(row[index], background, number, 0).save(folder / f"{stem}.png", optimize=True)
            caption = f"a {{trigger}} emoji of a {name}{behind(background)}\n"
            (folder / f"{stem}.txt").write_text(caption, encoding="utf-8")
        folder = _emptied(out / "truth" / style)
        for number, (name, index) in enumerate(zip(SUBJECTS, pictures.indices(list(SUBJECTS)), strict=True)):
            for view in range(VIEWS):
                picture = _view(row[index], next(iter(COLOURS)), len(THINGS) + number, view)
                picture.save(folder / f"{name}_{view + 1}.png", optimize=True)


def _view(rgba: np.ndarray, background: str, number: int, view: int) -> Image.Image:
    return photograph(Image.fromarray(rgba), background, SIDE, step_generator(_FIRST + number, view))


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--out", type=Path, default=Path("tests/data"), help="folder to write into")
    options = parser.parse_args(arguments)
    write_styles(load(options.work), options.out)


if __name__ == "__main__":
    main()
