"""Values in few bits: the nearest of the levels that suit a normal distribution, stretched to fit each row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from math import erf, exp, pi

import torch
from torch import Tensor

BITS = (1, 2, 4)
_FITS = 8   # rounds of choosing levels and stretching them; the error hardly falls after five


@cache
def levels(bits: int) -> Tensor:
    """The ``2^bits`` levels with the least mean squared error for N(0, 1) (Lloyd 1982, Max 1960), ascending.

    >>> levels(1) * (pi / 2) ** 0.5
    tensor([-1.,  1.])
    """
    values = [(2 * i + 1) / 2**bits - 1 for i in range(2**bits)]
    for _ in range(1000):
        edges = [-40.0, *((a + b) / 2 for a, b in pairwise(values)), 40.0]
        values = [_mean(a, b) for a, b in pairwise(edges)]
    return torch.tensor(values)


def _mean(low: float, high: float) -> float:
    """Mean of a standard normal variable between two edges."""
    mass = (erf(high / 2**0.5) - erf(low / 2**0.5)) / 2
    return (exp(-(low**2) / 2) - exp(-(high**2) / 2)) / (2 * pi) ** 0.5 / mass


def pack(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Replace every matrix of floating numbers by its codes and a line for each row; the rest stays.

    Rows run along the longer side, so that a line ``(stretch, shift)`` serves many values:
    ``<name>|codes`` is uint8, 8 / bits values to a byte, and ``<name>|lines`` is ``[rows, 2]``.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _packable(tensor.shape) or not tensor.is_floating_point():
            packed[name] = tensor
            continue
        codes, lines = _encode(_rows(tensor.float()), bits)
        packed[f"{name}|codes"], packed[f"{name}|lines"] = _squeeze(codes, bits), lines
    return packed


def unpack(packed: Mapping[str, Tensor], bits: int, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors that :func:`pack` packed, rounded to their levels; ``shapes`` are those they had."""
    tensors = {name: tensor for name, tensor in packed.items() if "|" not in name}
    for name, shape in shapes.items():
        if f"{name}|codes" in packed:
            stretch, shift = packed[f"{name}|lines"].unsqueeze(2).unbind(1)
            codes = _spread(packed[f"{name}|codes"], bits)[:, : max(shape)]
            rows = levels(bits)[codes.long()] * stretch + shift
            longest = shape.index(max(shape))
            others = [size for axis, size in enumerate(shape) if axis != longest]
            tensors[name] = rows.reshape(*others, max(shape)).movedim(-1, longest).contiguous()
    return tensors


def _packable(shape: torch.Size) -> bool:
    return len(shape) > 1 and max(shape) >= 16   # shorter rows would be mostly lines


def _rows(tensor: Tensor) -> Tensor:
    longest = tensor.shape.index(max(tensor.shape))
    return tensor.movedim(longest, -1).reshape(-1, max(tensor.shape)).contiguous()


def _encode(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes ``[rows, n]`` and lines ``[rows, 2]``: levels and lines are fitted to each other in turn."""
    book = levels(bits)
    edges = (book[1:] + book[:-1]) / 2
    shift = rows.mean(1, keepdim=True)
    stretch = (rows - shift).square().mean(1, keepdim=True).sqrt()
    codes = torch.zeros_like(rows, dtype=torch.long)
    for _ in range(_FITS):
        codes = torch.bucketize(torch.nan_to_num((rows - shift) / stretch), edges)
        chosen = book[codes]
        middle = chosen.mean(1, keepdim=True)
        spread = (chosen - middle).square().mean(1, keepdim=True)
        together = ((chosen - middle) * rows).mean(1, keepdim=True)
        stretch = torch.where(spread > 1e-6, together / spread, stretch)   # else all share one level
        shift = rows.mean(1, keepdim=True) - stretch * middle
    return codes, torch.cat([stretch, shift], 1)


def _squeeze(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per_byte)).unflatten(1, (-1, per_byte))
    return (padded << torch.arange(0, 8, bits)).sum(2).to(torch.uint8)


def _spread(packed: Tensor, bits: int) -> Tensor:
    return ((packed[:, :, None].long() >> torch.arange(0, 8, bits)) & (2**bits - 1)).flatten(1)
