"""Many weights and their low-rank updates woven together at once: ``W + strength · up @ down``, rounded once.

What costs is reading and writing W. The twin does it in one launch for all layers and never forms ΔW, whatever the
factors are made of (:mod:`factor`, :mod:`wavelet`, :mod:`tensor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from atelier.kernels.dispatch import twin
from atelier.kernels.factor_forms import Factor, pair


class Update(NamedTuple):
    """The low-rank update of one weight."""

    up: Factor     # [rows, rank]
    down: Factor   # [columns, rank]
    strength: float = 1.0


@torch.no_grad()
def weave(weights: Sequence[Tensor], updates: Sequence[Update]) -> list[Tensor]:
    """Form new weights; the given ones stay as they are.

    Args:
        weights: each ``[rows, …]``, a matrix ``[rows, columns]`` with its last axes apart, contiguous.
        updates: one for each weight, float32, on its device.

    Returns:
        In the shapes and dtypes of ``weights``; summed in float32.
    """
    if weights and (fast := twin("merge_low_rank", weights[0])):
        return fast.weave(weights, updates)
    return [_woven(weight, update) for weight, update in zip(weights, updates, strict=True)]


def _woven(weight: Tensor, update: Update) -> Tensor:
    up, down = pair(update.up, update.down)
    return weight.flatten(1).float().addmm(up, down, alpha=update.strength).to(weight.dtype).view_as(weight)
