"""Whole-number arithmetic of this machine for layers of codes, where it has it and gets it right.

On a CPU this is oneDNN through ``torch.ops.onednn.qconv_pointwise``, which torch keeps to itself: it is wrapped here
and nowhere else, and asked for sums that are known before it is trusted. Processors without VNNI or AMX add two
products in 16 bits, which overflow for 8-bit weights but not for those of 4 and 2 bits.

A linear layer is a convolution of one tap here: oneDNN's matrix product is up to a sixth slower for the same sums.
oneDNN is told of no zero point, and of no padding. It takes a seventh longer where it knows one, and a weight that was
made ready for one must be made ready again where a timestep has none. So codes are padded with the zero point, which
is what 0 rounds to, and what it adds to every sum is taken off with the bias.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_INPUT = 255
_CHANNELS, _SIDE = 8, 4   # of the layer that is asked for known sums: each is of 72 products


class ConvGeometry(NamedTuple):
    """How a kernel goes over its input: for height and width each."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)


POINT = ConvGeometry()


class PreparedWeight(NamedTuple):
    """A layer's weight in the form that oneDNN wants."""

    weight: Any      # oneDNN's own layout
    steps: Tensor    # [out]
    zeros: Tensor    # [out], all 0
    bias: Tensor     # [out]
    sums: Tensor     # [out], steps · Σ numbers: what an input of 1 adds to every sum
    way: ConvGeometry


def prepare_weight(
    numbers: Tensor, steps: Tensor, bias: Tensor | None, way: ConvGeometry = POINT
) -> PreparedWeight | None:
    """Make a weight ready, or say that this machine can't multiply it exactly.

    Args:
        numbers: int8 ``[out, in]`` or ``[out, in, h, w]``: code − zero point.
        steps: ``[out]`` float32.
        bias: ``[out]`` or None.
        way: of a convolution.
    """
    if numbers.device.type != "cpu" or not is_exact(int(numbers.abs().max()) if numbers.numel() else 0):
        return None
    return _prepare(numbers, steps, bias, way)


def _prepare(numbers: Tensor, steps: Tensor, bias: Tensor | None, way: ConvGeometry) -> PreparedWeight:
    taps = numbers.reshape(*numbers.shape, *[1] * (4 - numbers.ndim))
    packed = torch.ops.onednn.qconv_prepack(taps, steps, 1.0, 0, way.stride, (0, 0), way.dilation, 1, None)
    sums = steps * numbers.flatten(1).sum(1)
    whole = torch.zeros_like(steps) if bias is None else bias.float()
    return PreparedWeight(packed, steps, torch.zeros(len(steps), dtype=torch.int64), whole, sums, way)


def onednn_linear(codes: Tensor, step: float, zero: int, layer: PreparedWeight) -> Tensor:
    """uint8 codes ``[…, in]`` → float32 ``[…, out]``: step · steps · Σ (code − zero) · number + bias."""
    pixels = codes.view(1, -1, 1, codes.shape[-1]).permute(0, 3, 1, 2)
    return _sums(pixels, step, zero, layer).permute(0, 2, 3, 1).view(*codes.shape[:-1], -1)


def onednn_conv2d(codes: Tensor, step: float, zero: int, layer: PreparedWeight) -> Tensor:
    """The same for ``[B, in, h, w]``, best in ``channels_last``; ``[B, out, h', w']`` is in it."""
    high, wide = layer.way.padding
    padded = F.pad(codes, (wide, wide, high, high), value=zero) if high or wide else codes
    return _sums(padded, step, zero, layer)


def _sums(codes: Tensor, step: float, zero: int, layer: PreparedWeight) -> Tensor:
    bias = torch.add(layer.bias, layer.sums, alpha=-step * zero)
    return _operation()(
        codes, step, 0, layer.weight, layer.steps, layer.zeros, bias, layer.way.stride, (0, 0), layer.way.dilation, 1,
        1.0, 0, torch.float32, "none", [], "",
    )   # fmt: skip


@cache
def _operation() -> Any:
    """Looked up once: that takes as long as a small layer."""
    return torch.ops.onednn.qconv_pointwise.default


@cache
def is_exact(largest: int) -> bool:
    """Whether sums of products of 255 and ± ``largest`` come out right here."""
    if not hasattr(torch.ops.onednn, "qconv_pointwise") or largest > 127:
        return False
    codes = torch.full((1, _CHANNELS, _SIDE, _SIDE), LARGEST_INPUT, dtype=torch.uint8)
    numbers = torch.full((2, _CHANNELS, 3, 3), largest, dtype=torch.int8)
    numbers[1] *= -1
    try:
        layer = _prepare(numbers, torch.ones(2), None, POINT)
        found = onednn_conv2d(codes.contiguous(memory_format=torch.channels_last), 1.0, 0, layer)
    except RuntimeError:   # a build of torch without oneDNN, or another signature
        return False
    right = LARGEST_INPUT * largest * numbers[0].numel()
    return bool((found == torch.tensor([right, -right])[:, None, None]).all())
