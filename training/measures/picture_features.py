"""What a picture looks like, in a few bytes: for finding similar pictures and pictures of a colour among many."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 8                     # of the feature, in squares
FEATURE_BYTES = SIDE * SIDE * 3
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
_SHARE = 0.08                # of a picture that a colour must cover
_HUES = (15, 45, 70, 165, 260, 290, 345)   # degrees where red, orange, …, pink end; above, it is red again
_SAMPLE = 32                 # pixels a side that colours are counted in


def picture_feature(image: Image.Image) -> bytes:
    """Mean colours of 8 × 8 squares, red, green and blue of each: ``FEATURE_BYTES`` bytes."""
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def feature_distances(feature: bytes, others: list[bytes]) -> np.ndarray:
    """Mean squared difference of one feature to each of others, of 255² at most."""
    table = np.frombuffer(b"".join(others), np.uint8).reshape(len(others), FEATURE_BYTES).astype(np.float32)
    return np.square(table - np.frombuffer(feature, np.uint8)).mean(1)


def colours_of(image: Image.Image) -> list[str]:
    """Which of ``COLOURS`` cover a noticeable part of a picture.

    >>> colours_of(Image.new("RGB", (8, 8), (250, 10, 10)))
    ['red']
    """
    small = image.convert("RGB").resize((_SAMPLE, _SAMPLE), Image.Resampling.BOX)
    hue, saturation, value = (np.asarray(small.convert("HSV"), np.float32).reshape(-1, 3) / 255).T
    colour = np.searchsorted(_HUES, hue * 360, side="right") % len(_HUES)   # past the last it is red
    brown = np.isin(colour, (0, 1)) & (value < 0.6) & (saturation > 0.25)
    number = {name: place for place, name in enumerate(COLOURS)}
    colour = np.where(brown, number["brown"], colour)
    pale = saturation < 0.15
    colour = np.where(pale, number["grey"], colour)
    colour = np.where(pale & (value > 0.85), number["white"], colour)
    colour = np.where(value < 0.18, number["black"], colour)
    shares = np.bincount(colour, minlength=len(COLOURS)) / len(colour)
    return [name for name, share in zip(COLOURS, shares, strict=True) if share >= _SHARE]
