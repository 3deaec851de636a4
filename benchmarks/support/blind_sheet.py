"""A sheet of drawings without labels, to be looked at one by one, and the count of those that one would show.

    python -m benchmarks.support.blind_sheet build/report/blind.json --good 1 4 9 …
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, CAPTION, COLUMNS = 128, 14, 8


def write_blind_sheet(groups: Mapping[str, Sequence[Image.Image]], out: Path, count: int = 64, seed: int = 0) -> None:
    """`count` drawings, as many of each group as of the others, in random order: out.png, and whose each is: out.json.

    Raises ValueError where a group has too few drawings.
    """
    order, each = random.Random(seed), count // len(groups)
    if short := [name for name, pictures in groups.items() if len(pictures) < each]:
        raise ValueError(f"a sheet of {count} needs {each} drawings of each group; too few are of {', '.join(short)}")
    chosen = [(name, picture) for name, pictures in groups.items() for picture in order.sample(list(pictures), each)]
    order.shuffle(chosen)
    numbered_sheet([picture for _, picture in chosen]).save(out.with_suffix(".png"), optimize=True)
    key = {number: name for number, (name, _) in enumerate(chosen, 1)}
    out.with_suffix(".json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def numbered_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Drawings in rows of eight, each with its number below it."""
    cell, rows = SIDE + CAPTION, -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 2), rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        place = (column * (SIDE + 2), row * cell)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), place)
        draw.text((place[0] + 2, place[1] + SIDE), str(number + 1), fill="black")
    return sheet


def counted(key: Mapping[str, str], good: Sequence[int]) -> dict[str, tuple[int, int]]:
    """For each group: how many of its drawings are among the good ones, and how many it has."""
    if unknown := [number for number in good if str(number) not in key]:
        raise ValueError(f"there are {len(key)} drawings on this sheet, and no number {unknown[0]}")
    shown, all_of_them = Counter(key[str(number)] for number in set(good)), Counter(key.values())
    return {name: (shown[name], count) for name, count in sorted(all_of_them.items())}


def main() -> None:
    """Say for each group how many of its drawings one would show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("key", type=Path, help="the JSON file beside the sheet")
    parser.add_argument("--good", type=int, nargs="*", default=[], help="numbers of the drawings you would show")
    options = parser.parse_args()
    for name, (shown, count) in counted(json.loads(options.key.read_text()), options.good).items():
        print(f"{name}: {shown} of {count}")


if __name__ == "__main__":
    main()
