"""A linear layer in whole numbers: 8-bit inputs times weights of 8 bits or fewer, with the scales applied at the end.

::

    y[m, o] = s_x · s_w[o] · Σ_i (c_x[m, i] − z_x) (c_w[o, i] − z_w[o])  +  bias[o]  +  Σ_r (x downᵀ)[m, r] up[o, r]

The sum is over whole numbers and exact. The low-rank pair is an adapter on top: it reads the input before rounding.
Weight codes of less than 8 bits lie packed as EfficientDM's code has them (ThisisBillhe/EfficientDM@293e212): 8 / bits
neighbouring output channels share a row of bytes, the first in the lowest bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atelier.kernels.dispatch import twin
from atelier.kernels.fake_quant import encode, top_code

_PARTS = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,)}


class PackedWeight(NamedTuple):
    """The weight of a linear layer ``[out, in]`` as it is stored."""

    codes: Tensor   # uint8 [packed_rows(out, bits), in], see `pack`
    steps: Tensor   # [out], step sizes
    zeros: Tensor   # [out], zero points: whole numbers, such that every code − zero fits int8
    bits: int       # 1 … 6 or 8


def int8_linear(
    x: Tensor,
    step: Tensor,
    zero: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    pair: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Apply the layer to inputs that are rounded to 8 bits on the way.

    Args:
        x: ``[..., in]``.
        step: step size of the input's quantizer, ``[]``, float32.
        zero: its zero point, ``[]``, a whole number from 0 to 255.
        weight: see :class:`PackedWeight`.
        bias: ``[out]`` or None.
        pair: an adapter on top, ``up [out, rank]`` and ``down [rank, in]``.

    Returns:
        ``[..., out]`` in the dtype of ``x``; everything after the sum is computed in the dtype of ``steps``.
    """
    rows = x.reshape(-1, x.shape[-1])
    if weight.steps.dtype == torch.float32 and weight.bits in (2, 4, 8) and (fast := twin("int8_linear", x)):
        return fast.int8_linear(rows, step, zero, weight, bias, pair).view(*x.shape[:-1], -1)
    # float64 holds these sums exactly, and is multiplied on every device.
    inputs = encode(rows, step, zero, 8).double() - zero
    matrix = unpack(weight.codes, weight.bits, len(weight.steps)).double() - weight.zeros[:, None]
    result = (inputs @ matrix.T).to(weight.steps.dtype) * (step * weight.steps)
    if bias is not None:
        result = result + bias
    if pair is not None:
        up, down = (part.to(rows.dtype) for part in pair)
        result = result + (rows @ down.T @ up.T).to(result.dtype)
    return result.to(x.dtype).view(*x.shape[:-1], -1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Put neighbouring rows of codes into one: uint8 ``[out, …]`` → ``[packed_rows(out, bits), …]``.

    Codes of 8, 4, 2 or 1 bits lie ``8 / bits`` in a byte. Others are taken apart: of 6 bits the lower four are packed
    as codes of 4 bits, and the upper two as codes of 2 bits in the rows after them; 5 is 4 and 1, 3 is 2 and 1.

    Raises:
        ValueError: bits is not one of 1 … 6 or 8, or a code is too large for it.
    """
    if codes.numel() and int(codes.max()) > top_code(bits):
        raise ValueError(f"A code of {int(codes.max())} does not fit into {bits} bits.")
    parts, start = [], 0
    for width in _widths(bits):
        parts.append(_pack_evenly((codes >> start) & top_code(width), width))
        start += width
    return torch.cat(parts)


def unpack(packed: Tensor, bits: int, rows: int) -> Tensor:
    """Take ``rows`` rows of codes apart again; the inverse of :func:`pack`.

    Raises:
        ValueError: bits is not one of 1 … 6 or 8.
    """
    codes, start, first = packed.new_zeros(rows, *packed.shape[1:]), 0, 0
    for width in _widths(bits):
        part = packed[first : first + packed_rows(rows, width)]
        places = [(part >> (width * place)) & top_code(width) for place in range(8 // width)]
        codes |= torch.stack(places, 1).flatten(0, 1)[:rows] << start
        start, first = start + width, first + len(part)
    return codes


def packed_rows(rows: int, bits: int) -> int:
    """Rows of bytes that ``rows`` rows of codes take."""
    return sum(-(-rows * width // 8) for width in _widths(bits))


def _pack_evenly(codes: Tensor, bits: int) -> Tensor:
    group = 8 // bits
    missing = -len(codes) % group
    rows = torch.cat([codes, codes.new_zeros(missing, *codes.shape[1:])]).unflatten(0, (-1, group))
    packed = torch.zeros_like(rows[:, 0])
    for place in range(group):
        packed |= rows[:, place] << (bits * place)
    return packed


def _widths(bits: int) -> tuple[int, ...]:
    """The widths of 8, 4, 2 or 1 bits that codes are taken apart into, lowest bits first."""
    if bits not in _PARTS:
        raise ValueError(f"Codes of {bits} bits can't be packed. Use {', '.join(map(str, sorted(_PARTS)))}.")
    return _PARTS[bits]
