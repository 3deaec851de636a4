"""A second classifier of object and style, by another recipe than `judge.py`, so that one can check the other.

It sees no pixels but histograms of oriented gradients (Dalal & Triggs 2005), histograms of how strong the gradients are
and a coarse layout of colours, in cells of a grid; a perceptron of two layers names object and style from them. What
fools filters that were learned from textures need not fool these. It knows the same objects as the first judge, and the
styles that adapters are taught: also those made by arithmetic (`synthetic_styles.DRAWING_STYLES`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.training.config.assets import ASSETS
from atelier.training.embedded_base.judge import FEATURES, SHARPNESS, Judge

WEIGHTS = ASSETS / "judge" / "gradient_judge.safetensors"
GRID = 8
"""Cells along a side."""
ORIENTATIONS = 9
STRENGTHS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Bounds of the histogram of gradient lengths; pictures are in 0 … 1."""
HIDDEN = 384
INPUTS = GRID * GRID * (ORIENTATIONS + 3) + (GRID // 2) ** 2 * (len(STRENGTHS) + 1)


def gradients(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths and angles (0 … 1: half a turn), each [B, H, W], of the channel whose gradient is the longest."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    across, down = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    length, strongest = (across.square() + down.square()).max(1, keepdim=True)
    angle = torch.atan2(down.gather(1, strongest), across.gather(1, strongest)) / torch.pi % 1
    return length.sqrt()[:, 0], angle[:, 0]


def orientation_histograms(length: Tensor, angle: Tensor) -> Tensor:
    """Gradient length by orientation in every cell, [B, 9, 8, 8]: roots of shares of what the cells around have.

    Each pixel counts in the two nearest of nine orientations.
    """
    place = angle * ORIENTATIONS
    centres = torch.arange(ORIENTATIONS, device=length.device)[:, None, None]
    distance = (place[:, None] - centres).abs()
    share = (1 - torch.minimum(distance, ORIENTATIONS - distance)).clamp(min=0)
    cells = F.adaptive_avg_pool2d(share * length[:, None], GRID)
    around = F.avg_pool2d(cells.sum(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    return (cells / (around + 0.01)).sqrt()


def strength_histograms(length: Tensor) -> Tensor:
    """Shares of pixels whose gradient's length lies between two of `STRENGTHS`, [B, 8, 4, 4]."""
    bounds = torch.tensor(STRENGTHS, device=length.device)
    kind = F.one_hot(torch.bucketize(length, bounds), len(STRENGTHS) + 1).movedim(-1, 1).float()
    return F.adaptive_avg_pool2d(kind, GRID // 2)


def descriptors(pixels: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in 0 … 1 → all three kinds of numbers, [B, INPUTS]."""
    length, angle = gradients(pixels)
    parts = (orientation_histograms(length, angle), strength_histograms(length), F.adaptive_avg_pool2d(pixels, GRID))
    return torch.cat([part.flatten(1) for part in parts], 1)


class GradientNetwork(nn.Module):
    """Descriptors of a picture, then features, object logits and style logits."""

    def __init__(self, objects: int, styles: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU(), nn.Dropout(0.2)
        )
        self.embed = nn.Linear(HIDDEN, FEATURES)
        self.objects = nn.Linear(FEATURES, objects)
        self.styles = nn.Linear(HIDDEN, styles)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B, 3, 64, 64] in −1 … 1 → features [B, 128] of unit length, object and style logits."""
        return self.named(descriptors(pixels / 2 + 0.5))

    def named(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from descriptors [B, INPUTS]."""
        hidden = self.hidden(numbers)
        features = F.normalize(self.embed(hidden), dim=1)
        return features, self.objects(SHARPNESS * features), self.styles(hidden)


def gradient_judge() -> Judge:
    """The trained one; a missing file is a FileNotFoundError that says how to make it."""
    if not WEIGHTS.exists():
        raise FileNotFoundError(
            f"no second judge at {WEIGHTS}; "
            "train it with: python -m atelier.training.embedded_base.train_gradient_judge"
        )
    return Judge.load(WEIGHTS, GradientNetwork)
