"""The pictures the embedded base model learns from: fetched, drawn at two sizes, named.

Five permissively licensed emoji sets become five styles of the same thousand objects. Because every object
exists in every style, likeness has a ground truth: the base never sees the held-out objects nor the held-out
styles, and the judge (`judge.py`) knows them all.

    python -m atelier.training.embedded_base.pictures --out build/base
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atelier.training.config.assets import ASSETS

JUDGED_SIDE, BASE_SIDE = 64, 128
"""Widths of every picture, in pixels: what the judges see, and what the base model draws."""
EMOJI_GROUPS = frozenset({0, 3, 4, 5, 6, 7})
"""emojibase groups that hold things: smileys, animals, food, places, activities, objects (no people, no flags)."""
NAMES_PACKAGE = ("emojibase-data", "17.0.0")
PROMPTS = ASSETS / "base" / "prompts.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSet:
    """One npm package of pictures that share a style."""

    style: str  # the word captions use
    package: str
    version: str
    folder: str  # inside the package; for icon sets the folder of icons.json
    suffix: str  # of one picture file, or ".json" for an icon set


PICTURE_SETS = (
    PictureSet(style="3d", package="@lobehub/fluent-emoji-3d", version="1.1.0", folder="assets", suffix=".webp"),
    PictureSet(style="flat", package="@lobehub/fluent-emoji-flat", version="1.1.0", folder="assets", suffix=".svg"),
    PictureSet(
        style="glossy",
        package="emoji-datasource-google",
        version="16.0.0",
        folder="img/google/64",
        suffix=".png",
    ),
    PictureSet(
        style="mono",
        package="@iconify-json/fluent-emoji-high-contrast",
        version="1.2.6",
        folder=".",
        suffix=".json",
    ),
    PictureSet(style="twemoji", package="@iconify-json/twemoji", version="1.2.5", folder=".", suffix=".json"),
)


@dataclass(frozen=True, slots=True)
class Concept:
    """One object: its name as captions say it, its code point, and words people use for it."""

    name: str
    hexcode: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EmojiPictures:
    """Every object in every style.

    `rgba` is uint8 [styles, concepts, side, side, 4], straight (not premultiplied) alpha.
    """

    styles: tuple[str, ...]
    concepts: tuple[Concept, ...]
    rgba: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Object names, in the order of axis 1 of `rgba`."""
        return tuple(concept.name for concept in self.concepts)

    def indices(self, names: Sequence[str]) -> np.ndarray:
        """Positions of the named objects; an unknown name is a ValueError that lists it."""
        position = {name: index for index, name in enumerate(self.names)}
        if unknown := [name for name in names if name not in position]:
            raise ValueError(f"no pictures of {', '.join(unknown)}; take names from EmojiPictures.names")
        return np.array([position[name] for name in names])


def plain_words(label: str) -> str:
    """The label as captions spell it: lower case, no punctuation the tokenizer would trip over."""
    spelled = label.lower().replace("’", "'").replace(":", " ").replace("-", " ")
    return " ".join(spelled.translate(str.maketrans("", "", "“”!")).split())


def hexcode_key(hexcode: str) -> str:
    """One spelling for a code point sequence: lower case, without the variation selector FE0F.

    >>> hexcode_key("2764-FE0F")
    '2764'
    """
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def fetch(package: str, version: str, store: Path) -> Path:
    """The unpacked folder of one npm package below `store`, downloaded on first use.

    Raises RuntimeError when npm is missing or cannot reach its registry.
    """
    target = store / f"{package.strip('@').replace('/', '-')}-{version}"
    if (target / "package").is_dir():
        return target / "package"
    store.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", f"{package}@{version}", "--silent", "--pack-destination", str(store)]
    try:
        archive = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise RuntimeError(
            f"could not fetch {package} {version} with npm: {reason.strip()[-300:]}. "
            "Install Node.js (it brings npm) and check the network."
        ) from error
    with tarfile.open(store / archive) as tar:
        tar.extractall(target, filter="data")
    return target / "package"


def read_concepts(store: Path) -> tuple[Concept, ...]:
    """The named objects of emojibase, things only."""
    records = json.loads((fetch(*NAMES_PACKAGE, store) / "en" / "data.json").read_text(encoding="utf-8"))
    return tuple(
        Concept(plain_words(item["label"]), hexcode_key(item["hexcode"]), tuple(map(plain_words, item["tags"])))
        for item in records
        if item.get("group") in EMOJI_GROUPS
    )


def picture_sources(pictures: PictureSet, store: Path) -> dict[str, bytes]:
    """Hexcode key → file contents (webp, png or svg) of one set."""
    folder = fetch(pictures.package, pictures.version, store) / pictures.folder
    if pictures.suffix == ".json":
        return icon_sources(folder)
    return {hexcode_key(path.stem): path.read_bytes() for path in sorted(folder.glob(f"*{pictures.suffix}"))}


def icon_sources(folder: Path) -> dict[str, bytes]:
    """Hexcode key → svg document, from an Iconify icon set (svg bodies in one JSON file)."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    code_points: dict[str, str] = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    aliases = {name: alias["parent"] for name, alias in icons.get("aliases", {}).items()}
    found: dict[str, bytes] = {}
    for hexcode, name in code_points.items():
        icon: dict[str, Any] | None = icons["icons"].get(name) or icons["icons"].get(aliases.get(name, ""))
        if icon:
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="#202020">'
            found[hexcode_key(hexcode)] = f"{head}{icon['body']}</svg>".encode()
    return found


def draw(source: bytes, side: int) -> Image.Image:
    """One picture file as a square RGBA picture, `side` pixels wide, area-filtered in premultiplied alpha."""
    if source.lstrip().startswith(b"<"):
        import resvg_py  # only `make base` and the examples need it, so it is no dependency of the product

        svg = resvg_py.svg_to_bytes(svg_string=source.decode(), width=2 * side, height=2 * side)
        picture = Image.open(io.BytesIO(bytes(svg)))
    else:
        picture = Image.open(io.BytesIO(source))
    picture = picture.convert("RGBA")
    longest = max(picture.size)
    square = Image.new("RGBA", (longest, longest))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return square.convert("RGBa").resize((side, side), Image.Resampling.BOX).convert("RGBA")


def render(store: Path, side: int) -> EmojiPictures:
    """Draw every object that all sets have, `side` pixels wide (about a minute)."""
    sources = {pictures.style: picture_sources(pictures, store) for pictures in PICTURE_SETS}
    concepts = tuple(
        concept for concept in read_concepts(store) if all(concept.hexcode in found for found in sources.values())
    )
    rgba = np.stack(
        [np.stack([np.asarray(draw(found[one.hexcode], side)) for one in concepts]) for found in sources.values()]
    )
    return EmojiPictures(tuple(sources), concepts, rgba)


def save(pictures: EmojiPictures, work: Path) -> None:
    """Write pictures_SIDE.npy and concepts.json into the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    np.save(_pixels(work, pictures.rgba.shape[2]), pictures.rgba)
    index = {
        "styles": pictures.styles,
        "concepts": [(concept.name, concept.hexcode, concept.tags) for concept in pictures.concepts],
    }
    (work / "concepts.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def load(work: Path, side: int = JUDGED_SIDE) -> EmojiPictures:
    """Read what `save` wrote; the pixels stay on disk until used.

    A folder without pictures of this side is a FileNotFoundError that says how they are drawn.
    """
    if not _pixels(work, side).exists():
        raise FileNotFoundError(
            f"{work} holds no pictures {side} pixels wide. "
            f"Draw them with: python -m atelier.training.embedded_base.pictures --out {work}"
        )
    index = json.loads((work / "concepts.json").read_text(encoding="utf-8"))
    concepts = tuple(Concept(name, hexcode, tuple(tags)) for name, hexcode, tags in index["concepts"])
    return EmojiPictures(tuple(index["styles"]), concepts, np.load(_pixels(work, side), mmap_mode="r"))


def _pixels(work: Path, side: int) -> Path:
    return work / f"pictures_{side}.npy"


def read_prompts(path: Path = PROMPTS) -> dict[str, Any]:
    """The words of the base: concepts, also, held_out, styles, backgrounds, caption, prior_prompts."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/base"), help="work folder (default: build/base)")
    options = parser.parse_args(arguments)
    store = options.out / "npm"
    for side in (JUDGED_SIDE, BASE_SIDE):
        if not _pixels(options.out, side).exists():
            save(render(store, side), options.out)


if __name__ == "__main__":
    main()
