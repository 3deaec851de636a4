"""Quantizers that take their range from each input itself, so nothing depends on what was seen in calibration.

The grain is the finest that a sum of integers allows. A Linear and a convolution of one tap have a step size for each
row of their input, as ViDiT-Q (arXiv 2406.02540) has for each token; a larger convolution adds up all pixels under its
kernel, so it has one for each of its output positions: the range of the patch below. No picture sees its neighbours in
the batch. Only a factor on every layer's ranges is stored, which learns: at few bits, a range that cuts off outliers
may round the rest better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.kernels.fake_quant import fake_quant, top_code

SMALLEST = 1e-12   # range of a row of zeros, which has none


class DynamicQuantizers(nn.Module):
    """The factors on the input ranges of L layers, and the operation of a layer on its rounded input."""

    clips: nn.Parameter   # [L], above 0

    def __init__(self, bits: Sequence[int], clips: Tensor | None = None) -> None:
        """``bits`` one a layer, ``clips [L]``; None takes ranges whole."""
        super().__init__()
        self.clips = nn.Parameter(torch.ones(len(bits)) if clips is None else clips.float().clone())
        self.bits = tuple(bits)

    def apply_layer(self, layer: Any, index: int, x: Tensor, weight: Tensor) -> Tensor:
        """What a Linear or Conv2d with this weight answers to ``x`` rounded to the bits of the layer at ``index``."""
        clip, bits = self.clips[index], self.bits[index]
        if isinstance(layer, nn.Linear):
            return F.linear(round_rows(x, clip, bits), weight, layer.bias)
        patches = unfold(x, layer)   # [B, positions, in · taps]
        found = F.linear(round_rows(patches, clip, bits), weight.flatten(1), layer.bias)
        return found.transpose(1, 2).unflatten(2, output_size(x, layer))


def round_rows(x: Tensor, clip: Tensor | float, bits: int) -> Tensor:
    """Every row ``[…, n]`` rounded to ``2^bits`` levels from its smallest to its largest number, times ``clip``.

    The range holds 0, which is a level of its own: padding stays exact. Gradients pass to numbers within the range
    and to the factor, not to the range.
    """
    rows = x.reshape(-1, x.shape[-1])
    ends = rows.detach().aminmax(dim=1, keepdim=True)
    low, high = ends.min.float().clamp(max=0), ends.max.float().clamp(min=0)
    whole = (high - low).clamp(min=SMALLEST) / top_code(bits)
    zeros = (-low / whole).round()
    return fake_quant(rows, whole * clip, zeros, bits).reshape(x.shape)


def unfold(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """What lies below a convolution's kernel at each output position: ``[B, positions, in · taps]``."""
    height, width = layer.kernel_size
    if (height, width) == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0):
        return x.flatten(2).transpose(1, 2)
    return F.unfold(x, (height, width), layer.dilation, layer.padding, layer.stride).transpose(1, 2)   # type: ignore[arg-type]


def output_size(x: Tensor, layer: nn.Conv2d) -> tuple[int, int]:
    """Height and width of what a convolution answers to ``x [B, C, H, W]``."""
    sizes = []
    for side, kernel, stride, padding, dilation in zip(
        x.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True
    ):
        assert isinstance(padding, int)
        sizes.append((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    return sizes[0], sizes[1]
