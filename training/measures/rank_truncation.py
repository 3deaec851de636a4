"""Size against likeness: how much of an adapter is lost when its layers keep only the first ranks of their SVD."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.low_rank import WeightChange, WeightOf, truncated_svd, weight_changes

MAX_RANK = 128
LEAST_BEND = 0.1   # depth of a knee below the line, where the line falls by 1


@dataclass(frozen=True, slots=True)
class SizePoint:
    """A LoRA of one rank in place of the adapter."""

    rank: int
    bytes: int      # of its file, in float32
    error: float    # ‖ΔW − ΔW of this rank‖ / ‖ΔW‖ over all layers


@torch.no_grad()
def size_curve(adapters: AdapterSet, weight_of: WeightOf) -> list[SizePoint]:
    """The error of each rank 1, 2, 4 … up to the adapter's own, best approximations layer by layer (Eckart–Young).

    Args:
        adapters: the adapter.
        weight_of: weights of the base model by module; asked only for kinds whose ΔW depends on them.
    """
    layers = [layer for change in weight_changes(Mix(((adapters, 1.0),)), weight_of) if (layer := _layer(change))]
    most = max((len(values) for values, _, _ in layers), default=0)
    total = sum(whole for _, whole, _ in layers)
    return [_point(rank, layers, total) for rank in _ranks(most)]


def knee(points: Sequence[SizePoint]) -> SizePoint | None:
    """The point after which more size buys little: farthest below the line between both ends (Kneedle, Satopää 2011).

    None where the curve does not bend: then every rank that is left out costs as much as the one before.
    """
    if len(points) < 3:
        return None
    first, last = points[0], points[-1]
    width, height = math.log2(last.rank / first.rank), first.error - last.error
    if height <= 0:
        return first   # rank 1 is all there is

    def depth(point: SizePoint) -> float:
        """Distance of a point below the line, in units of the whole drop."""
        return (first.error - point.error) / height - math.log2(point.rank / first.rank) / width

    found = max(points, key=depth)
    return found if depth(found) >= LEAST_BEND else None


def _ranks(most: int) -> Iterable[int]:
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), *([most] if most else [])]


def _layer(change: WeightChange) -> tuple[Tensor, float, int] | None:
    """Squared singular values, their whole sum, and the values that one rank takes; None where no LoRA can hold it."""
    if len(change.spec.shape) < 2:
        return None
    if change.pair is not None:
        up, down = change.pair
        values = torch.linalg.svdvals(torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T)
        squares = values.square()
        return squares, float(squares.sum()), up.shape[0] + down.shape[1]
    matrix = change.matrix()
    squares = truncated_svd(matrix, MAX_RANK)[1][:MAX_RANK].square()
    return squares, float(matrix.square().sum()), sum(matrix.shape)


def _point(rank: int, layers: Sequence[tuple[Tensor, float, int]], total: float) -> SizePoint:
    held = sum(float(squares[:rank].sum()) for squares, _, _ in layers)
    values = sum(min(rank, len(squares)) * per_rank for squares, _, per_rank in layers)
    return SizePoint(rank, 4 * values, math.sqrt(max(0.0, 1 - held / total)) if total else 0.0)
