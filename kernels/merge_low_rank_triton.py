"""All layers' ``W + strength · up @ down`` in one launch for each pair of forms: W is read once and written once.

A layer is a row of a table: addresses, sizes, and what its two factors' loaders need to know. A program takes one tile
of one layer; the loaders give it 16 ranks of each factor at a time. Small layers leave programs of theirs idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from atelier.kernels.factor_forms import DenseFactor, Factor
from atelier.kernels.tensor_networks import KhatriRaoFactor, TensorTrainFactor
from atelier.kernels.wavelet import HaarFactor

if TYPE_CHECKING:
    from atelier.kernels.merge_low_rank import LowRankUpdate

PLAIN, PRODUCTS, TRAIN, HAAR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
HEAD, FIELDS = tl.constexpr(5), tl.constexpr(9)   # numbers of a layer, and of each of its two factors
TILE: dict[str, int] = {"BM": 64, "BN": 64, "R": 16, "num_warps": 4}


@triton.jit
def merge_kernel(
    table_ptr, strengths_ptr, like_ptr,
    UP: tl.constexpr, DOWN: tl.constexpr, ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, R: tl.constexpr,
):
    """One tile of one layer; ``like_ptr`` tells the type of the weights."""
    at = table_ptr + tl.program_id(1) * (HEAD + 2 * FIELDS)
    w_ptr, y_ptr = tl.load(at).to(like_ptr.dtype), tl.load(at + 1).to(like_ptr.dtype)
    rows, columns, rank = tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)
    if ALIGNED:
        w_ptr, y_ptr, columns = tl.multiple_of(w_ptr, 16), tl.multiple_of(y_ptr, 16), tl.multiple_of(columns, 16)
    tiles = tl.cdiv(columns, BN)
    if tl.program_id(0) < tl.cdiv(rows, BM) * tiles:
        i = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
        j = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for start in range(0, rank, R):
            r = start + tl.arange(0, R)
            up = factor_tile(at + HEAD, i[:, None], r[None, :], (i < rows)[:, None] & (r < rank)[None, :], UP)
            down = factor_tile(at + HEAD + FIELDS, j[None, :], r[:, None],
                               (j < columns)[None, :] & (r < rank)[:, None], DOWN)
            total = tl.dot(up, down, total, input_precision=PRECISION)
        place = i[:, None] * columns + j[None, :]
        live = (i < rows)[:, None] & (j < columns)[None, :]
        total = tl.load(w_ptr + place, mask=live, other=0.0).to(tl.float32) + total * tl.load(
            strengths_ptr + tl.program_id(1))
        tl.store(y_ptr + place, total.to(like_ptr.dtype.element_ty), mask=live)


@triton.jit
def factor_tile(at, i, r, live, FORM: tl.constexpr):
    """Entries [i, r] of a factor, 0 where nothing is ``live``."""
    first = tl.load(at).to(tl.pointer_type(tl.float32))
    second = tl.load(at + 1).to(tl.pointer_type(tl.float32))
    if FORM == PLAIN:
        return tl.load(first + i * tl.load(at + 3) + r * tl.load(at + 4), mask=live, other=0.0)
    elif FORM == PRODUCTS:
        count = tl.load(at + 7)
        outer = tl.load(first + (i // count) * tl.load(at + 3) + r * tl.load(at + 4), mask=live, other=0.0)
        return outer * tl.load(second + (i % count) * tl.load(at + 5) + r * tl.load(at + 6), mask=live, other=0.0)
    elif FORM == HAAR:
        return haar_tile(at, first, second, i, r, live)
    else:
        return train_tile(at, first, second, i, r, live)


@triton.jit
def haar_tile(at, first, others, i, r, live):
    """One of four bands, which depends on ``r``; details are subtracted for every second feature."""
    size, rank, rest, taps, details = (
        tl.load(at + 3), tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7))
    feature = i // taps
    n = (feature // 2) * taps + i % taps
    band = tl.where(r < rank, 0, 1 + (r - rank) // rest)
    smooth = tl.load(first + n * rank + r, mask=live & (r < rank), other=0.0)
    beyond = others + ((band - 1) * size + n) * rest + (r - rank) % rest   # the other bands, one after the other
    value = smooth + tl.load(beyond, mask=live & (r >= rank), other=0.0)
    minus = (feature % 2 == 1) & (((details >> band) & 1) == 1)
    return tl.where(minus, -value, value) * 0.7071067811865476


@triton.jit
def train_tile(at, first, middle, i, r, live):
    """first[i₁] · middle[i₂] · last[i₃][:, r]."""
    last = tl.load(at + 2).to(tl.pointer_type(tl.float32))
    bond, rank, n1, n2, n3, turned = (
        tl.load(at + 3), tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7), tl.load(at + 8) != 0)
    one = tl.where(turned, i % n1, i // (n2 * n3))
    two = tl.where(turned, (i // n1) % n2, (i // n3) % n2)
    three = tl.where(turned, i // (n1 * n2), i % n3)
    inside = i < n1 * n2 * n3
    total = tl.where(live, 0.0, 0.0)
    for b in range(0, bond):
        entry = tl.where(inside, 0.0, 0.0)   # of first[i₁] · middle[i₂]
        for a in range(0, bond):
            entry += tl.load(first + one * bond + a, mask=inside, other=0.0) * tl.load(
                middle + (two * bond + a) * bond + b, mask=inside, other=0.0)
        total += entry * tl.load(last + (three * bond + b) * rank + r, mask=live, other=0.0)
    return total


def merge_low_rank(weights: Sequence[Tensor], updates: Sequence[LowRankUpdate]) -> list[Tensor]:
    """The twin of :func:`atelier.kernels.merge_low_rank.merge_low_rank`."""
    woven = [torch.empty_like(weight) for weight in weights]
    groups: dict[tuple[Any, ...], list[int]] = {}
    rows: list[list[int]] = []
    used: list[Tensor] = []   # kept until the launches are on their way
    for number, (weight, update) in enumerate(zip(weights, updates, strict=True)):
        height, width = weight.flatten(1).shape
        (up, up_tensors), (down, down_tensors) = _fields(update.up), _fields(update.down)
        rows.append([weight.data_ptr(), woven[number].data_ptr(), height, width, _rank(update.up), *up, *down])
        used += up_tensors + down_tensors
        aligned = width % 16 == 0 and weight.data_ptr() % 16 == 0
        groups.setdefault((weight.dtype, type(update.up), type(update.down), aligned), []).append(number)
    device = weights[0].device
    for (dtype, up, down, aligned), members in groups.items():
        table = torch.tensor([rows[m] for m in members], dtype=torch.int64).to(device)
        strengths = torch.tensor([updates[m].strength for m in members], dtype=torch.float32).to(device)
        most = max(triton.cdiv(rows[m][2], TILE["BM"]) * triton.cdiv(rows[m][3], TILE["BN"]) for m in members)
        kernel: Any = merge_kernel
        kernel[most, len(members)](
            table, strengths, weights[members[0]], UP=_form(up), DOWN=_form(down), ALIGNED=aligned,
            PRECISION="ieee" if dtype == torch.float32 else "tf32", **TILE,
        )
    return woven


def _form(kind: type[Factor]) -> int:
    return {DenseFactor: PLAIN, KhatriRaoFactor: PRODUCTS, TensorTrainFactor: TRAIN, HaarFactor: HAAR}[kind].value


def _rank(factor: Factor) -> int:
    match factor:
        case DenseFactor(values):
            return values.shape[1]
        case KhatriRaoFactor(outer):
            return outer.shape[1]
        case TensorTrainFactor(_, _, last):
            return last.shape[2]
        case HaarFactor((first, others)):
            return first.shape[-1] + 3 * others.shape[-1]
    raise TypeError(f"there is no loader for factors stored as {type(factor).__name__}; use Plain")


def _fields(factor: Factor) -> tuple[list[int], list[Tensor]]:
    """A factor's numbers in the table, three addresses first, and the tensors at those addresses."""
    match factor:
        case DenseFactor(values):
            tensors, numbers = [values], [*values.stride()]
        case KhatriRaoFactor(outer, inner):
            tensors, numbers = [outer, inner], [*outer.stride(), *inner.stride(), len(inner)]
        case TensorTrainFactor(first, middle, last, turned):
            tensors = [core.contiguous() for core in (first, middle, last)]
            numbers = [*last.shape[1:], len(first), len(middle), len(last), int(turned)]
        case HaarFactor((first, others), details, _, taps):
            tensors = [first.contiguous(), others.contiguous()]
            numbers = [len(first), first.shape[-1], others.shape[-1], taps,
                       sum(fine << place for place, fine in enumerate(details))]
        case _:
            raise TypeError(f"there is no loader for factors stored as {type(factor).__name__}; use Plain")
    fields = [*(tensor.data_ptr() for tensor in tensors), *[0] * (3 - len(tensors)), *numbers]
    return fields + [0] * (FIELDS.value - len(fields)), tensors
