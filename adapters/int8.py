"""Whole-number arithmetic of this machine for layers of codes, where it has it and gets it right.

On a CPU this is oneDNN through ``torch.ops.onednn.qlinear_pointwise``, which torch keeps to itself: it is wrapped here
and nowhere else, and asked for a sum that is known before it is trusted. Processors without VNNI or AMX add two
products in 16 bits, which overflow for 8-bit weights but not for those of 4 and 2 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST_INPUT = 255
_PROBE = 64   # products in the sum that is asked for


class Prepared(NamedTuple):
    """A linear layer's weight in the form that oneDNN wants."""

    weight: Any      # oneDNN's own layout
    steps: Tensor    # [out]
    zeros: Tensor    # [out], all 0
    bias: Tensor | None


def prepare(numbers: Tensor, steps: Tensor, bias: Tensor | None) -> Prepared | None:
    """Make a weight ready, or say that this machine can't multiply it exactly.

    Args:
        numbers: int8 ``[out, in]``: code − zero point.
        steps: ``[out]`` float32.
        bias: ``[out]`` or None.
    """
    if numbers.device.type != "cpu" or not exact_to(int(numbers.abs().max()) if numbers.numel() else 0):
        return None
    packed = torch.ops.onednn.qlinear_prepack(numbers, None)
    return Prepared(packed, steps, torch.zeros(len(steps), dtype=torch.int64), None if bias is None else bias.float())


def linear(codes: Tensor, step: float, zero: int, layer: Prepared) -> Tensor:
    """``[rows, in]`` uint8 codes → ``[rows, out]`` float32: step · steps · Σ (code − zero) · number + bias."""
    return torch.ops.onednn.qlinear_pointwise(
        codes, step, zero, layer.weight, layer.steps, layer.zeros, layer.bias, 1.0, 0, torch.float32, "none", [], ""
    )


@cache
def exact_to(largest: int) -> bool:
    """Whether sums of products of 255 and ± ``largest`` come out right here."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise") or largest > 127:
        return False
    codes = torch.full((2, _PROBE), LARGEST_INPUT, dtype=torch.uint8)
    numbers = torch.full((2, _PROBE), largest, dtype=torch.int8)
    numbers[1] *= -1
    try:
        packed = torch.ops.onednn.qlinear_prepack(numbers, None)
        layer = Prepared(packed, torch.ones(2), torch.zeros(2, dtype=torch.int64), None)
        found = linear(codes, 1.0, 0, layer)
    except RuntimeError:   # a build of torch without oneDNN, or another signature
        return False
    right = LARGEST_INPUT * largest * _PROBE
    return bool((found == torch.tensor([right, -right])).all())
