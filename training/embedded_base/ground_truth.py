"""How far a drawing is from the ground truth: for the embedded base, every prompt has a true picture.

Object, style and background of a prompt are known, only size and place are free. So a drawing is compared with the
true picture at many sizes and places, and the nearest of them counts. No classifier is asked: a drawing that is
recognised but melted is far from every true picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from atelier.training.embedded_base.vae import structural_similarity
from atelier.training.embedded_base.views import on_background

SCALES = (0.7, 0.76, 0.82, 0.88, 0.94, 1.0)
SHIFTS = (-0.16, -0.12, -0.08, -0.04, 0.0, 0.04, 0.08, 0.12, 0.16)
"""Of the picture's centre, in units of half its side."""


@dataclass(frozen=True, slots=True)
class TruthDistance:
    """A drawing beside the nearest true picture.

    `pixels` and `edges` are root mean squares in 0 … 1 (0: equal), `ssim` is structural similarity (1: equal),
    `sharpness` is the drawing's edge energy over the truth's (1: as sharp).
    """

    pixels: float
    edges: float
    ssim: float
    sharpness: float


def views(truth: Tensor, background: Tensor) -> Tensor:
    """The true picture at every size and place: [4, H, W] premultiplied, [3] → [N, 3, H, W] in 0 … 1."""
    scale, x, y = (axis.flatten() for axis in torch.meshgrid(
        torch.tensor(SCALES), torch.tensor(SHIFTS), torch.tensor(SHIFTS), indexing="ij"))   # fmt: skip
    zero = torch.zeros_like(scale)
    rows = torch.stack([1 / scale, zero, -x / scale, zero, 1 / scale, -y / scale], 1).view(-1, 2, 3)
    many = truth.expand(len(scale), -1, -1, -1)
    placed = F.grid_sample(many, F.affine_grid(rows, list(many.shape), align_corners=False), align_corners=False)
    return on_background(placed, background.expand(len(scale), 3))


def truth_distance(drawing: Tensor, truth: Tensor, background: Tensor) -> TruthDistance:
    """Compare a drawing [3, H, W] in 0 … 1 with the true picture [4, H, W], premultiplied, on `background` [3].

    The nearest view is the one of the highest structural similarity.
    """
    candidates = views(truth, background)
    similarity = structural_similarity(drawing.expand_as(candidates), candidates).mean((1, 2, 3))
    best = int(similarity.argmax())
    nearest = candidates[best]
    edges, true_edges = _edges(drawing), _edges(nearest)
    return TruthDistance(
        pixels=float((drawing - nearest).square().mean().sqrt()),
        edges=float((edges - true_edges).square().mean().sqrt()),
        ssim=float(similarity[best]),
        sharpness=float(edges.square().mean() / true_edges.square().mean().clamp(min=1e-8)),
    )


def _edges(picture: Tensor) -> Tensor:
    """Differences to the right and down, [6, H − 1, W − 1]."""
    return torch.cat([picture.diff(dim=-1)[:, :-1], picture.diff(dim=-2)[:, :, :-1]])
