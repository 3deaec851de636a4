"""The layer in whole numbers on tensor cores: int8 times int8, weights unpacked on the way, everything else at the end.

Inputs are rounded once, in a launch of their own, to codes − 128, which fit int8; the rest of their zero point meets
the sums of the weight's rows:  Σ (c − z)·w = Σ (c − 128)·w + (128 − z)·Σ w.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from atelier.kernels.fake_quant_triton import half_to_even

if TYPE_CHECKING:
    from atelier.kernels.int8_linear import PackedWeight

BLOCK = 1024
TILE: dict[str, int] = {"BM": 64, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3}


@triton.jit
def encode_kernel(x_ptr, step_ptr, zero_ptr, codes_ptr, size, BLOCK: tl.constexpr):
    """Codes − 128 of a block of inputs."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    code = half_to_even(tl.div_rn(x, tl.load(step_ptr))) + tl.load(zero_ptr)
    code = tl.minimum(tl.maximum(code, 0.0), 255.0) - 128.0
    tl.store(codes_ptr + i, code.to(tl.int8), mask=i < size)


@triton.jit
def matrix_kernel(
    codes_ptr, packed_ptr, steps_ptr, zeros_ptr, step_ptr, zero_ptr, bias_ptr, inner_ptr, up_ptr, y_ptr, M, N, K, RANK,
    BITS: tl.constexpr, BIASED: tl.constexpr, R: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
    """One tile; R is 0 without a low-rank pair."""
    tiles = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    # Neighbouring channels share a byte: it comes from the cache for all but the first of them.
    shift = ((n % (8 // BITS)) * BITS).to(tl.uint8)
    xs = codes_ptr + m.to(tl.int64)[:, None] * K
    ws = packed_ptr + (n // (8 // BITS)).to(tl.int64)[None, :] * K
    zeros = tl.load(zeros_ptr + n, mask=n < N, other=0.0).to(tl.int32)
    total = tl.zeros((BM, BN), dtype=tl.int32)
    sums = tl.zeros((BN,), dtype=tl.int32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(xs + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0)
        live = (n[None, :] < N) & (k[:, None] < K)
        code = (tl.load(ws + k[:, None], mask=live, other=0) >> shift[None, :]) & (2**BITS - 1)
        w = tl.where(live, code.to(tl.int32) - zeros[None, :], 0)
        total = tl.dot(x, w.to(tl.int8), total, out_dtype=tl.int32)
        sums += tl.sum(w, axis=0)
    total += (128 - tl.load(zero_ptr).to(tl.int32)) * sums[None, :]
    y = total.to(tl.float32) * (tl.load(step_ptr) * tl.load(steps_ptr + n, mask=n < N, other=0.0))[None, :]
    if BIASED:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if R > 0:
        r = tl.arange(0, R)
        inner = tl.load(inner_ptr + m.to(tl.int64)[:, None] * RANK + r[None, :],
                        mask=(m[:, None] < M) & (r[None, :] < RANK), other=0.0)
        up = tl.load(up_ptr + n.to(tl.int64)[None, :] * RANK + r[:, None],
                     mask=(n[None, :] < N) & (r[:, None] < RANK), other=0.0)
        y = tl.dot(inner, up, y, input_precision="ieee")
    tl.store(y_ptr + m.to(tl.int64)[:, None] * N + n[None, :], y.to(y_ptr.dtype.element_ty),
             mask=(m[:, None] < M) & (n[None, :] < N))


def int8_linear(
    rows: Tensor, step: Tensor, zero: Tensor, weight: PackedWeight, bias: Tensor | None,
    pair: tuple[Tensor, Tensor] | None,
) -> Tensor:   # fmt: skip
    """The twin of :func:`atelier.kernels.int8_linear.int8_linear` on rows ``[N, in]``; K is at most 60,000."""
    rows = rows.contiguous()
    (count, width), features = rows.shape, len(weight.steps)
    codes = torch.empty(count, width, dtype=torch.int8, device=rows.device)
    encode: Any = encode_kernel
    encode[(triton.cdiv(rows.numel(), BLOCK),)](rows, step, zero, codes, rows.numel(), BLOCK=BLOCK)
    rank = 0 if pair is None else pair[1].shape[0]
    # `x downᵀ` is a product like any other, and torch's are fast.
    inner, up = (rows @ pair[1].to(rows.dtype).T, pair[0].to(rows.dtype).contiguous()) if pair else (rows, rows)
    result = torch.empty(count, features, dtype=rows.dtype, device=rows.device)
    kernel: Any = matrix_kernel
    kernel[(triton.cdiv(count, TILE["BM"]) * triton.cdiv(features, TILE["BN"]),)](
        codes, weight.codes, weight.steps, weight.zeros, step, zero, weight.steps if bias is None else bias,
        inner, up, result, count, features, width, rank,
        BITS=weight.bits, BIASED=bias is not None, R=max(16, triton.next_power_of_2(rank)) if rank else 0, **TILE,
    )   # fmt: skip
    return result
