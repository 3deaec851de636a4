"""The distance to the true picture: none for the truth itself, and growing with what a person would call worse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from atelier.training.embedded_base.ground_truth import truth_distance
from atelier.training.embedded_base.views import on_background

BLUE = torch.tensor([0.2, 0.4, 0.9])


def thing(seed: int = 0) -> torch.Tensor:
    """A blotchy disc, premultiplied, [4, 64, 64]."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    alpha = ((x - 32) ** 2 + (y - 32) ** 2 < 24**2).float()
    blotches = F.interpolate(torch.rand(1, 3, 8, 8, generator=random), size=64, mode="bilinear")[0]
    return torch.cat([blotches * alpha, alpha[None]])


def drawn(scale: float = 1.0, x: float = 0.0, y: float = 0.0, seed: int = 0) -> torch.Tensor:
    """The thing as a drawing, smaller and elsewhere."""
    rows = torch.tensor([[[1 / scale, 0, -x / scale], [0, 1 / scale, -y / scale]]])
    placed = F.grid_sample(thing(seed)[None], F.affine_grid(rows, [1, 4, 64, 64], align_corners=False),
                           align_corners=False)   # fmt: skip
    return on_background(placed, BLUE[None])[0]


@pytest.mark.parametrize(("scale", "x", "y"), [(1.0, 0.0, 0.0), (0.76, 0.12, -0.08), (0.94, -0.16, 0.16)])
def test_the_truth_is_found_wherever_it_stands(scale, x, y):
    found = truth_distance(drawn(scale, x, y), thing(), BLUE)
    assert found.pixels < 1e-3 and found.edges < 1e-3
    assert found.ssim == pytest.approx(1, abs=1e-3) and found.sharpness == pytest.approx(1, abs=1e-2)


def test_between_the_places_that_are_tried_it_is_still_near():
    found = truth_distance(drawn(0.85, 0.02, 0.06), thing(), BLUE)
    assert found.ssim > 0.9 > truth_distance(drawn(seed=1), thing(), BLUE).ssim


def test_a_melted_drawing_is_further_away_and_not_sharp():
    melted = F.avg_pool2d(F.pad(drawn()[None], (4,) * 4, mode="replicate"), 9, 1)[0]
    found = truth_distance(melted, thing(), BLUE)
    assert found.ssim < 0.95 and found.sharpness < 0.5 and found.edges > 0.01


def test_another_thing_style_or_background_is_further_away():
    right = truth_distance(drawn(), thing(), BLUE)
    for wrong in (truth_distance(drawn(seed=1), thing(), BLUE), truth_distance(drawn(), thing(), 1 - BLUE),
                  truth_distance(drawn().mean(0, keepdim=True).expand(3, -1, -1), thing(), BLUE)):
        assert wrong.pixels > right.pixels + 0.05 and wrong.ssim < right.ssim
