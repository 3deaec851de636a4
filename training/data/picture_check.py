"""The one check of training pictures, for command line, Create page and the run's start.

A file is decoded once (:func:`examine`). What that tells is a :class:`PictureFacts`, a small record that can be kept;
every verdict follows from it, at any training size.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from PIL import Image

from atelier.training.data.buckets import Size, bucket_sizes, crop_box, nearest_bucket
from atelier.training.data.images import PictureError, decode_picture, pixel_hash, sharpness

SIDES = (64, 128, 256, 512, 1024)
"""Sides of the squares whose area pictures have when their sharpness is measured."""
# Variance of the Laplacian at training size. The lowest of 16 sharp photographs (scikit-image's) and 283 drawn emoji at
# 64, 256 and 512 pixels was 47. With a blur of 2 pixels 31 of 32 photographs and 564 of 566 emoji at 256 and 512 pixels
# fell below 25; at 64 pixels, where edges are steep, 205 of 299 did.
LEAST_SHARPNESS = 25.0
SMALLEST_PART = 0.5         # of a picture's area that a crop may keep without a word
# Correlation of two pictures of 16 × 16 pixels. 158 photographs saved again as JPEG of quality 40, at half the size, or
# with 15 % less contrast: at least .999. The nearest of 342 pairs of different photographs of one thing: .971.
LEAST_TWIN = 0.995
# Share of neighbouring pixels, at 64 × 64, that are nearly equal; the median of a set. Of 32 sets of photographs all
# but one (a vase before a plain wall: .66) were below .55, of 8 sets of drawn emoji none was below .64.
MOST_FLAT_PHOTOGRAPHS = 0.58
_THUMB, _FLAT_SIDE, _FLAT_STEP = 16, 64, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureFacts:
    """What decoding a picture tells: enough for every verdict."""

    format: str                    # of the file, one of FORMATS
    width: int                     # pixels, upright
    height: int
    pixels: str                    # hash: equal for the same picture in another file
    thumb: str                     # 16 × 16 pixels of RGB, in base64
    sharpness: tuple[float, ...]   # at SIDES; a smaller picture at its own size
    flatness: float                # share of neighbouring pixels that are nearly equal
    turned: bool = False
    converted: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.width, self.height

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what :func:`dataclasses.asdict` gave, from JSON.

        Raises:
            TypeError, ValueError, KeyError: something else.
        """
        sharpness = tuple(float(value) for value in values["sharpness"])
        facts = cls(**{**values, "sharpness": sharpness, "converted": tuple(map(str, values["converted"])),
                       "width": int(values["width"]), "height": int(values["height"]),
                       "flatness": float(values["flatness"])})   # fmt: skip
        if len(sharpness) != len(SIDES) or min(facts.size) < 1 or len(b64decode(facts.thumb)) != 3 * _THUMB**2:
            raise ValueError("these are no facts on a picture")
        return facts


@dataclass(frozen=True, slots=True)
class PictureVerdict:
    """Something that a person should know about a picture."""

    kind: str          # small, odd aspect, blurred, near-twin; turned, converted: how it is used, no fault
    sentence: str

    @property
    def is_fault(self) -> bool:
        """Whether another picture would be better."""
        return self.kind not in ("turned", "converted")


def examine(path: Path, known: Mapping[str, PictureFacts]) -> tuple[Image.Image, PictureFacts]:
    """Decode a picture to RGB and measure it.

    Args:
        path: the file.
        known: the pictures before it, by name.

    Raises:
        PictureError: it can't be used, or is one of those before.
    """
    decoded = decode_picture(path)
    picture = decoded.picture
    hash = pixel_hash(picture)
    if same := next((name for name, facts in known.items() if facts.pixels == hash), ""):
        raise PictureError(f"{path.name} is the same picture as {same}, so it is left out.")
    thumb = picture.resize((_THUMB, _THUMB), Image.Resampling.BOX).tobytes()
    return picture, PictureFacts(
        format=decoded.info.format, width=picture.width, height=picture.height, pixels=hash,
        thumb=b64encode(thumb).decode(), sharpness=tuple(_sharpnesses(picture)), flatness=_flatness(picture),
        turned=decoded.turned, converted=decoded.converted)   # fmt: skip


def verdicts(name: str, facts: PictureFacts, twin: str, resolution: int, multiple: int) -> list[PictureVerdict]:
    """What may spoil the result, judged on what the model will see, and how the picture is used.

    Args:
        name: the picture's, for the sentences.
        facts: from :func:`examine`.
        twin: name of a picture that looks nearly the same (:func:`near_twin`), or empty.
        resolution: side of the square bucket in pixels.
        multiple: every bucket side is a multiple of this.
    """
    bucket = nearest_bucket(facts.size, bucket_sizes(resolution, multiple))
    return [PictureVerdict(kind, sentence) for kind, sentence in _verdicts(name, facts, twin, bucket)]


def _verdicts(name: str, facts: PictureFacts, twin: str, bucket: Size) -> Iterator[tuple[str, str]]:
    left, top, right, bottom = crop_box(facts.size, bucket)
    width, height = right - left, bottom - top
    if width < bucket[0] / 2:
        yield "small", (
            f"{name} has only {facts.width} × {facts.height} pixels and is enlarged to {bucket[0]} × {bucket[1]}, "
            "so it will look soft. Use a larger version if you have one.")
    if width * height < SMALLEST_PART * facts.width * facts.height:
        yield "odd aspect", (
            f"{name} has {facts.width} × {facts.height} pixels, which is too long for any training size, so only "
            "its middle is used. Crop it to the subject.")
    if _sharpness_at(facts, bucket) < LEAST_SHARPNESS:
        yield "blurred", f"{name} looks blurred, and the model would learn the blur. Use a sharper picture."
    if twin:
        yield "near-twin", (f"{name} looks nearly the same as {twin}, so what they show counts twice. Remove one of "
                            "them, or give it a lower weight.")
    if facts.turned:
        yield "turned", f"{name} is turned upright, as the camera noted."
    for kind in facts.converted:
        how = "is drawn on white where it is transparent" if kind == "transparent" else (
            f"has pixels of another kind ({kind}), which become RGB of 8 bits")
        yield "converted", f"{name} {how}."


def near_twin(facts: PictureFacts, known: Mapping[str, PictureFacts]) -> str:
    """Name of the first picture that looks nearly the same: saved again, at another size, a little brighter."""
    thumb = _normalized(facts.thumb)
    return next((name for name, other in known.items()
                 if float(thumb @ _normalized(other.thumb)) >= LEAST_TWIN), "")   # fmt: skip


def photograph_warning(pictures: Sequence[PictureFacts], draws_emoji: bool) -> str:
    """A sentence where most pictures look like photographs and the base model draws emoji; else empty."""
    if not draws_emoji or not pictures or median(facts.flatness for facts in pictures) >= MOST_FLAT_PHOTOGRAPHS:
        return ""
    return ("These pictures look like photographs, but the embedded base model draws emoji only: what it learns from "
            "them will look blurred. For photographs, choose a Stable Diffusion model as the base model.")


def _sharpnesses(picture: Image.Image) -> list[float]:
    """At each of SIDES, from the largest down, so that a picture of the phone's size is scaled once."""
    found: list[float] = []
    for side in sorted(SIDES, reverse=True):
        scale = (side * side / (picture.width * picture.height)) ** 0.5
        if scale < 1:
            picture = picture.resize((max(3, round(picture.width * scale)), max(3, round(picture.height * scale))),
                                     Image.Resampling.LANCZOS)   # fmt: skip
        found.append(round(sharpness(picture), 2))
    return found[::-1]


def _sharpness_at(facts: PictureFacts, bucket: Size) -> float:
    area = min(bucket[0] * bucket[1], facts.width * facts.height)
    nearest = min(SIDES, key=lambda side: max(area, side * side) / min(area, side * side))
    return facts.sharpness[SIDES.index(nearest)]


def _flatness(picture: Image.Image) -> float:
    small = picture.resize((_FLAT_SIDE, _FLAT_SIDE), Image.Resampling.BOX).tobytes()
    pixels = torch.frombuffer(bytearray(small), dtype=torch.uint8).view(_FLAT_SIDE, _FLAT_SIDE, 3).int()
    steps = (pixels[:, 1:] - pixels[:, :-1]).abs().amax(-1)
    return round((steps <= _FLAT_STEP).float().mean().item(), 3)


@lru_cache(maxsize=1024)
def _normalized(thumb: str) -> torch.Tensor:
    """A thumbnail as a unit vector, without its mean colour; zero where it has one colour only."""
    pixels = torch.frombuffer(bytearray(b64decode(thumb)), dtype=torch.uint8).view(-1, 3).double()
    centred = (pixels - pixels.mean(0)).flatten()
    length = centred.norm()
    return centred / length if length else centred
