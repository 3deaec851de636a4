"""Styles made from a picture by arithmetic: no base model knows them, and the truth of any thing in any is computed.

`LOOKS` change colours and lines simply: many lessons for gates. `DRAWING_STYLES` have an unmistakable look of their
own, and adapters are taught them and judged by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.training.embedded_base.pictures import EmojiPictures
from atelier.training.embedded_base.views import Placement, place, premultiplied

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


def _gradient(pixels: Tensor) -> Tensor:
    """How fast the light changes, on white, by Sobel's filter: ``[B, 1, H, W]``."""
    light = F.pad(_light(pixels) + 1 - pixels[:, 3:], (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    return F.conv2d(light, torch.stack([across, across.T])[:, None]).square().sum(1, keepdim=True).sqrt()


def _blurred(pixels: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(F.pad(pixels, (side // 2,) * 4, mode="replicate"), side, 1)


def _grown(alpha: Tensor) -> Tensor:
    """One pixel wider, so that an outline has room."""
    return F.max_pool2d(alpha, 3, 1, 1)


def _own_light(pixels: Tensor) -> Tensor:
    """Luminance of the colours themselves, not premultiplied: ``[B, 1, H, W]``."""
    return (_light(pixels) / pixels[:, 3:].clamp(min=1e-3)).clamp(0, 1)


def _colour(*channels: float) -> Tensor:
    return torch.tensor(channels)[:, None, None]


def pixel_art(pixels: Tensor, *, cells: int = 16, levels: int = 4) -> Tensor:
    """Large square pixels of few colours."""
    small = F.avg_pool2d(pixels, pixels.shape[-1] // cells)
    colours = small[:, :3] / small[:, 3:].clamp(min=1e-3)
    solid = (small[:, 3:] > 0.45).float()
    few = (colours * (levels - 1)).round() / (levels - 1)
    return F.interpolate(torch.cat([few * solid, solid], 1), scale_factor=pixels.shape[-1] // cells)


def blueprint(pixels: Tensor) -> Tensor:
    """White lines on squared blue paper, which fills the picture."""
    side = pixels.shape[-1]
    grid = torch.zeros(side, side)
    grid[:: side // 8] = grid[:, :: side // 8] = 0.18
    lines = torch.maximum((_gradient(pixels) * 0.9).clamp(0, 1), grid)
    paper, ink = _colour(0.09, 0.24, 0.62), _colour(0.92, 0.97, 1.0)
    return torch.cat([paper + (ink - paper) * lines, torch.ones_like(pixels[:, 3:])], 1)


def neon(pixels: Tensor) -> Tensor:
    """Glowing lines of the thing's own hues in the dark, which fills the picture."""
    lines = (_gradient(pixels) * 0.8).clamp(0, 1) * _grown(pixels[:, 3:])
    colours = _blurred(pixels[:, :3], 5) / _blurred(pixels[:, 3:], 5).clamp(min=0.05)
    hue = colours / colours.amax(1, keepdim=True).clamp(min=0.2)
    lit = _colour(0.05, 0.03, 0.12) + hue * (lines + 0.9 * _blurred(lines, 7))
    return torch.cat([lit.clamp(0, 1), torch.ones_like(lines)], 1)


def two_colour_print(pixels: Tensor) -> Tensor:
    """Blue ink, red dots and cream paper, as from a risograph."""
    alpha, light, side = pixels[:, 3:], _own_light(pixels), pixels.shape[-1]
    wave = torch.sin(torch.arange(side) * (64 / side) * math.pi / 2)
    screen = wave[:, None] * wave * 0.25 + 0.55
    ink, dots, paper = _colour(0.1, 0.2, 0.45), _colour(0.93, 0.25, 0.22), _colour(0.98, 0.93, 0.8)
    colours = torch.where(light < 0.35, ink, torch.where(light < screen, dots, paper))
    return torch.cat([colours * alpha, alpha], 1)


def pencil(pixels: Tensor) -> Tensor:
    """Gray lines, with hatching where it is dark and crossed where it is darker."""
    alpha, light, side = pixels[:, 3:], _own_light(pixels), pixels.shape[-1]
    row, column, width = torch.arange(side)[:, None], torch.arange(side), max(1, side // 32)
    rising, falling = ((row + column) // width % 2).float(), ((row - column) // width % 2).float()
    shade = ((light < 0.75) * rising * 0.35 + (light < 0.45) * falling * 0.4) * (alpha > 0.5)
    gray = 1 - 0.8 * torch.maximum(_gradient(pixels) * 1.1, shade).clamp(0, 1)
    solid = _grown(alpha)
    return torch.cat([gray.expand(-1, 3, -1, -1) * solid, solid], 1)


DRAWING_STYLES: dict[str, Look] = {
    "pixel art": pixel_art,
    "blueprint": blueprint,
    "neon": neon,
    "two-colour print": two_colour_print,
    "pencil": pencil,
}


def placed_in_style(
    pictures: EmojiPictures, style: str, objects: Tensor, placement: Placement, random: torch.Generator
) -> Tensor:
    """One view of each object in one style, ``[B, 4, H, W]``, premultiplied; `objects` are indices ``[B]``.

    A style that no set of pictures has is drawn from the first set's; one that is neither is a ValueError.
    """
    if style not in (*pictures.styles, *DRAWING_STYLES):
        raise ValueError(f"no style {style!r}; there are {', '.join((*pictures.styles, *DRAWING_STYLES))}")
    row = pictures.styles.index(style) if style in pictures.styles else 0
    placed = place(premultiplied(pictures.rgba[row, objects.numpy()]), placement, random)
    return DRAWING_STYLES[style](placed) if style in DRAWING_STYLES else placed
