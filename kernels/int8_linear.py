"""A linear layer in whole numbers: 8-bit inputs times 8-, 4- or 2-bit weights, with the scales applied at the end.

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


class PackedWeight(NamedTuple):
    """The weight of a linear layer ``[out, in]`` as it is stored."""

    codes: Tensor   # uint8 [⌈out · bits / 8⌉, in], see `pack`
    steps: Tensor   # [out], step sizes
    zeros: Tensor   # [out], zero points: whole numbers, such that every code − zero fits int8
    bits: int       # 8, 4 or 2


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
    if weight.steps.dtype == torch.float32 and weight.bits > 1 and (fast := twin("int8_linear", x)):
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
    """Put ``8 / bits`` neighbouring rows of codes into one: uint8 ``[out, …]`` → ``[⌈out · bits / 8⌉, …]``.

    Raises:
        ValueError: bits is not 8, 4, 2 or 1, or a code is too large for it.
    """
    group = _group(bits)
    if codes.numel() and int(codes.max()) > top_code(bits):
        raise ValueError(f"A code of {int(codes.max())} does not fit into {bits} bits.")
    missing = -len(codes) % group
    rows = torch.cat([codes, codes.new_zeros(missing, *codes.shape[1:])]).unflatten(0, (-1, group))
    packed = torch.zeros_like(rows[:, 0])
    for place in range(group):
        packed |= rows[:, place] << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int, rows: int) -> Tensor:
    """Take ``rows`` rows of codes apart again; the inverse of :func:`pack`.

    Raises:
        ValueError: bits is not 8, 4, 2 or 1.
    """
    places = [(packed >> (bits * place)) & top_code(bits) for place in range(_group(bits))]
    return torch.stack(places, 1).flatten(0, 1)[:rows]


def _group(bits: int) -> int:
    """How many codes share a byte."""
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"Codes of {bits} bits can't be packed into bytes evenly. Use 8, 4, 2 or 1.")
    return 8 // bits
