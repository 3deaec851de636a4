"""Low-rank updates merged into many weights at once: ``W + strength · up @ down``, rounded once.

Reading and writing W takes most of the time. The Triton twin does it in one launch for all layers and never forms ΔW,
whatever structure the factors have (``factor_forms.py``, ``tensor_networks.py``, ``wavelet.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from atelier.kernels.dispatch import twin
from atelier.kernels.factor_forms import Factor, factor_matrices


class LowRankUpdate(NamedTuple):
    """The exact factors of one weight's update, and the strength it is added with."""

    up: Factor     # [rows, rank]
    down: Factor   # [columns, rank]
    strength: float = 1.0


@torch.no_grad()
def merge_low_rank(weights: Sequence[Tensor], updates: Sequence[LowRankUpdate]) -> list[Tensor]:
    """Form new weights; the given ones stay as they are.

    Args:
        weights: each ``[rows, …]``, a matrix ``[rows, columns]`` with its last axes apart, contiguous.
        updates: one for each weight, float32, on its device.

    Returns:
        In the shapes and dtypes of ``weights``; summed in float32.
    """
    if weights and (fast := twin("merge_low_rank", weights[0])):
        return fast.merge_low_rank(weights, updates)
    return [_merge_one(weight, update) for weight, update in zip(weights, updates, strict=True)]


def _merge_one(weight: Tensor, update: LowRankUpdate) -> Tensor:
    up, down = factor_matrices(update.up, update.down)
    return weight.flatten(1).float().addmm(up, down, alpha=update.strength).to(weight.dtype).view_as(weight)
