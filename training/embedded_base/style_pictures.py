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

import torch
from torch import Tensor

from atelier.training.embedded_base.ema_trainer import step_generator
from atelier.training.embedded_base.example_pictures import BACKGROUNDS, PLACEMENT, SUBJECTS, before
from atelier.training.embedded_base.pictures import EmojiPictures, load, read_prompts
from atelier.training.embedded_base.synthetic_styles import placed_in_style
from atelier.training.embedded_base.text import behind
from atelier.training.embedded_base.views import COLOURS

THINGS = (
    "house", "red apple", "automobile", "tulip", "key", "fish", "mushroom", "bell", "bread", "tiger face",
    "banana", "turtle", "bicycle", "ice cream", "robot", "ghost", "cow face", "rose", "drum", "camera",
)   # fmt: skip
"""Objects in the training pictures of a style: known ones, of many shapes."""
VIEWS = 2
_FIRST = 200   # first seed, apart from those of the example pictures


def write_styles(pictures: EmojiPictures, out: Path) -> None:
    """One folder of captioned pictures and one of true pictures for each held-out style."""
    for style in read_prompts()["held_out_styles"]:
        folder = _emptied(out / "styles" / style.replace(" ", "_"))
        for number, name in enumerate(THINGS):
            background = BACKGROUNDS[number % len(BACKGROUNDS)]
            placed = _placed(pictures, style, name, number, 0)
            stem = name.replace(" ", "_")
            before(placed, background).save(folder / f"{stem}.png", optimize=True)
            said = "" if _fills(placed) else behind(background)
            (folder / f"{stem}.txt").write_text(f"a {{trigger}} emoji of a {name}{said}\n", encoding="utf-8")
        folder = _emptied(out / "truth" / style.replace(" ", "_"))
        for number, name in enumerate(SUBJECTS):
            for view in range(VIEWS):
                picture = before(_placed(pictures, style, name, len(THINGS) + number, view), next(iter(COLOURS)))
                picture.save(folder / f"{name}_{view + 1}.png", optimize=True)


def _placed(pictures: EmojiPictures, style: str, name: str, number: int, view: int) -> Tensor:
    """One thing in one style, [1, 4, 64, 64], premultiplied."""
    random = step_generator(_FIRST + number, view)
    return placed_in_style(pictures, style, torch.from_numpy(pictures.indices([name])), PLACEMENT, random)


def _fills(placed: Tensor) -> bool:
    """Does the style bring its own ground, so that no background shows?"""
    return bool((placed[:, 3] == 1).all())


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
