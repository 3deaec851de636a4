"""The low-rank linear layer in one launch: x is read once, y is written once.

``x downᵀ`` is gathered in the same loop as ``x Wᵀ`` and multiplied with ``up`` at the end. Every tile of columns
gathers it again, so tiles are wide. The gradient of x is the same operation with all matrices turned.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDE: dict[str, int] = {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3}
SMALL: dict[str, int] = {"BM": 64, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 4}
EXACT: dict[str, int] = {"BM": 64, "BN": 32, "BK": 32, "num_warps": 4, "num_stages": 3}   # for float32
ENOUGH_TILES = 200   # wide ones, to have some for every multiprocessor of a large card


@triton.jit
def linear_kernel(
    x_ptr, w_ptr, bias_ptr, down_ptr, up_ptr, y_ptr, inner_ptr, M, N, K, RANK,
    sxm, sxk, swn, swk, sdr, sdk, sun, sur, sym,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, R: tl.constexpr,
    BIASED: tl.constexpr, KEEPS: tl.constexpr, PRECISION: tl.constexpr,
):
    """y = x wᵀ + bias + (x downᵀ) upᵀ; with KEEPS, x downᵀ is stored as well."""
    # Columns vary fastest, so that programs that run together share their rows of x.
    tiles = tl.cdiv(N, BN)
    rows = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
    columns = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    ranks = tl.arange(0, R)
    xs = x_ptr + rows.to(tl.int64)[:, None] * sxm
    ws = w_ptr + columns.to(tl.int64)[None, :] * swn
    downs = down_ptr + ranks[None, :] * sdr
    total = tl.zeros((BM, BN), dtype=tl.float32)
    inner = tl.zeros((BM, R), dtype=tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        offsets = k.to(tl.int64)
        x = tl.load(xs + offsets[None, :] * sxk, mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        w = tl.load(ws + offsets[:, None] * swk, mask=(columns[None, :] < N) & (k[:, None] < K), other=0.0)
        down = tl.load(downs + offsets[:, None] * sdk, mask=(ranks[None, :] < RANK) & (k[:, None] < K), other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
        inner = tl.dot(x, down, inner, input_precision=PRECISION)
    up = tl.load(up_ptr + columns.to(tl.int64)[None, :] * sun + ranks[:, None] * sur,
                 mask=(columns[None, :] < N) & (ranks[:, None] < RANK), other=0.0)
    total = tl.dot(inner.to(up.dtype), up, total, input_precision=PRECISION)
    if BIASED:
        total += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + rows.to(tl.int64)[:, None] * sym + columns[None, :], total.to(y_ptr.dtype.element_ty),
             mask=(rows[:, None] < M) & (columns[None, :] < N))
    if KEEPS:
        tl.store(inner_ptr + rows.to(tl.int64)[:, None] * RANK + ranks[None, :],
                 inner.to(inner_ptr.dtype.element_ty),
                 mask=(rows[:, None] < M) & (ranks[None, :] < RANK) & (tl.program_id(0) % tiles == 0))


def forward(rows: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    """``rows Wᵀ + b + (rows downᵀ) upᵀ``: ``[N, in] → [N, out]``."""
    return _launch(rows, weight, bias, up, down)[0]


def gradient_of_rows(gradient: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """``gradient W + (gradient up) down``, ``[N, in]``, and ``gradient up``, ``[N, rank]``."""
    result, inner = _launch(gradient, weight.T, None, down.T, up.T, keeps=True)
    return result, inner


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, *, keeps: bool = False
) -> tuple[Tensor, Tensor]:
    (count, width), (features, rank) = x.shape, up.shape
    y = torch.empty(count, features, dtype=x.dtype, device=x.device)
    inner = torch.empty(count if keeps else 0, rank, dtype=x.dtype, device=x.device)
    many = triton.cdiv(count, WIDE["BM"]) * triton.cdiv(features, WIDE["BN"]) >= ENOUGH_TILES
    how = EXACT if x.dtype == torch.float32 else WIDE if many else SMALL
    grid = (triton.cdiv(count, how["BM"]) * triton.cdiv(features, how["BN"]),)
    kernel: Any = linear_kernel
    kernel[grid](
        x, weight, x if bias is None else bias, down, up, y, inner, count, features, width, rank,
        *x.stride(), *weight.stride(), *down.stride(), *up.stride(), features,
        R=max(16, triton.next_power_of_2(rank)), BIASED=bias is not None, KEEPS=keeps,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", **how,
    )
    return y, inner
