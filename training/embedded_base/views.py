"""Where an object stands in its picture and what is behind it: placements, named colours, composition.

The base model, the judge and the example pictures all take their views from here, each with its own ranges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (225, 60, 60),
    "orange": (250, 160, 60),
    "yellow": (250, 225, 90),
    "green": (90, 190, 100),
    "blue": (80, 140, 230),
    "purple": (150, 90, 210),
    "pink": (250, 170, 200),
    "gray": (170, 170, 170),
}
"""Background colours by the word that names them in captions, sRGB 0 … 255."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How much an object's size, place and angle may vary from view to view."""

    smallest: float  # scale of the smallest view; 1 fills the picture
    shift: float  # largest shift, as a share of the picture's side
    degrees: float = 0.0  # largest rotation either way


def colour(name: str) -> Tensor:
    """The named background colour, [3] in 0 … 1. An unknown name is a KeyError."""
    return torch.tensor(COLOURS[name]) / 255


def premultiplied(rgba: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 4] with straight alpha → float [B, 4, H, W] in 0 … 1 with premultiplied alpha."""
    pixels = torch.tensor(rgba).permute(0, 3, 1, 2).float() / 255
    return torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1)


def place(pixels: Tensor, placement: Placement, random: torch.Generator) -> Tensor:
    """Scale, rotate and shift each picture of a batch at random; what comes in from outside is transparent.

    `pixels` is [B, 4, H, W], premultiplied. Large views are the more frequent ones, because detail is scarce.
    """
    count = pixels.shape[0]

    def uniform() -> Tensor:
        """In −1 … 1, one number for each picture, [B]."""
        return torch.rand(count, generator=random) * 2 - 1

    scale = 1 - (1 - placement.smallest) * torch.rand(count, generator=random).square()
    angle = uniform() * math.radians(placement.degrees)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    # affine_grid asks where each output pixel comes from, in units of half a side: hence 1/scale and 2·shift.
    rows = torch.stack(
        [cosine, -sine, uniform() * 2 * placement.shift, sine, cosine, uniform() * 2 * placement.shift], dim=1
    )
    grid = F.affine_grid(rows.view(count, 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def place_pair(left: Tensor, right: Tensor, random: torch.Generator) -> Tensor:
    """Two things in one picture, each about half as wide, the left one in front where they touch.

    `left` and `right` are [B, 4, H, W], premultiplied; what comes back has their shape.
    """
    count = left.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        """In low … high, one number for each picture, [B]."""
        return low + (high - low) * torch.rand(count, generator=random)

    def at(pixels: Tensor, side: int) -> Tensor:
        """The pictures at about half their size, left (−1) or right (1) of the middle."""
        scale = uniform(0.42, 0.54)
        x, y = side * uniform(0.44, 0.54), uniform(-0.22, 0.22)  # of the centre, in units of half the picture
        zero = torch.zeros(count)
        rows = torch.stack([1 / scale, zero, -x / scale, zero, 1 / scale, -y / scale], dim=1)
        grid = F.affine_grid(rows.view(count, 2, 3), list(pixels.shape), align_corners=False)
        smooth = F.avg_pool2d(pixels, 3, 1, 1)  # or every second pixel alone would be seen
        return F.grid_sample(smooth, grid, align_corners=False)

    front, back = at(left, -1), at(right, 1)
    return front + back * (1 - front[:, 3:])


def on_background(pixels: Tensor, background: Tensor) -> Tensor:
    """Premultiplied [B, 4, H, W] over one colour each, [B, 3] → [B, 3, H, W] in 0 … 1."""
    return (pixels[:, :3] + background[:, :, None, None] * (1 - pixels[:, 3:])).clamp(0, 1)


def random_colours(count: int, share: float, names: Sequence[str], random: torch.Generator) -> Tensor:
    """Indices into `names`, [count]: 0 (white) except for the given share, which draws evenly from the rest."""
    chosen = torch.randint(1, len(names), (count,), generator=random)
    return torch.where(torch.rand(count, generator=random) < share, chosen, torch.zeros_like(chosen))
