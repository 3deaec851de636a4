"""Ways of drawing that nobody draws in, made from a picture by arithmetic.

So there are styles that no base model knows, and the truth of any thing in any of them can be computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Look = Callable[[Tensor], Tensor]
"""Premultiplied colours and alpha ``[B, 4, H, W]`` in 0 … 1 → the same drawn otherwise."""
_LUMA = (0.299, 0.587, 0.114)   # Rec. 601
Colour = tuple[int, int, int]


def _light(pixels: Tensor) -> Tensor:
    """Luminance ``[B, 1, H, W]``, premultiplied like the colours."""
    return (pixels[:, :3] * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def two_colours(pixels: Tensor, *, dark: Colour, bright: Colour) -> Tensor:
    """Every shade between two colours."""
    low, high = (torch.tensor(one)[:, None, None] / 255 for one in (dark, bright))
    light, alpha = _light(pixels), pixels[:, 3:]
    return torch.cat([low * (alpha - light).clamp(min=0) + high * light, alpha], 1)


def negative(pixels: Tensor) -> Tensor:
    """Every colour's opposite."""
    return torch.cat([pixels[:, 3:] - pixels[:, :3], pixels[:, 3:]], 1)


def outline(pixels: Tensor) -> Tensor:
    """Black lines where the light changes, nothing between them."""
    light = _light(pixels)
    change = F.max_pool2d(light, 3, 1, 1) + F.max_pool2d(-light, 3, 1, 1)
    lines = (change * 4).clamp(0, 1) * F.max_pool2d(pixels[:, 3:], 3, 1, 1)
    return torch.cat([torch.zeros_like(pixels[:, :3]), lines], 1)


def turned(pixels: Tensor) -> Tensor:
    """Red for green, green for blue, blue for red."""
    return pixels[:, [2, 0, 1, 3]]


LOOKS: dict[str, Look] = {
    "sepia": partial(two_colours, dark=(60, 30, 10), bright=(250, 220, 160)),
    "blueprint": partial(two_colours, dark=(10, 20, 120), bright=(200, 230, 255)),
    "candy": partial(two_colours, dark=(150, 0, 90), bright=(255, 240, 60)),
    "gray": partial(two_colours, dark=(0, 0, 0), bright=(255, 255, 255)),
    "negative": negative,
    "outline": outline,
    "turned": turned,
}
