"""The gated sum of one token in one program: every activation is read once, and one row is written."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from atelier.kernels.gated_sum import EPSILON, GateVectors

ROUNDING = tl.constexpr(EPSILON)


@triton.jit
def normalized(values, width, live, gain, shift):
    """Layer norm of one row."""
    mean = tl.sum(values, axis=0) / width
    apart = tl.where(live, values - mean, 0.0)
    return apart * tl.rsqrt(tl.sum(apart * apart, axis=0) / width + ROUNDING) * gain + shift


@triton.jit
def gated_sum_kernel(
    base_ptr, parts_ptr, vectors_ptr, offset_ptr, y_ptr, count, rows, width, OFFSET: tl.constexpr, BLOCK: tl.constexpr
):
    """One token: h₀ + w_o ⊙ Σ gᵢ ⊙ hᵢ."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    live = j < width
    # In the order of `GateVectors`.
    out, of_base, of_part, of_both = (
        tl.load(vectors_ptr + j, mask=live, other=0.0), tl.load(vectors_ptr + width + j, mask=live, other=0.0),
        tl.load(vectors_ptr + 2 * width + j, mask=live, other=0.0),
        tl.load(vectors_ptr + 3 * width + j, mask=live, other=0.0))
    common = tl.load(vectors_ptr + 4 * width + j, mask=live, other=0.0)
    base_gain, base_shift, part_gain, part_shift = (
        tl.load(vectors_ptr + 5 * width + j, mask=live, other=0.0),
        tl.load(vectors_ptr + 6 * width + j, mask=live, other=0.0),
        tl.load(vectors_ptr + 7 * width + j, mask=live, other=0.0),
        tl.load(vectors_ptr + 8 * width + j, mask=live, other=0.0))
    base = tl.load(base_ptr + row * width + j, mask=live, other=0.0).to(tl.float32)
    seen = normalized(base, width, live, base_gain, base_shift)
    common += of_base * seen
    if OFFSET:
        common += tl.load(offset_ptr + row * width + j, mask=live, other=0.0).to(tl.float32)
    slope = of_part + of_both * seen
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in range(0, count):
        part = tl.load(parts_ptr + (k * rows + row) * width + j, mask=live, other=0.0).to(tl.float32)
        logit = common + slope * normalized(part, width, live, part_gain, part_shift)
        total += part / (1.0 + tl.exp(-logit))
    tl.store(y_ptr + row * width + j, (base + out * total).to(y_ptr.dtype.element_ty), mask=live)


def gated_sum(base: Tensor, parts: Tensor, vectors: GateVectors, offset: Tensor | None) -> Tensor:
    """The twin of :func:`atelier.kernels.gated_sum.gated_sum`, without gradients."""
    width, rows = base.shape[-1], base.numel() // base.shape[-1]
    result = torch.empty_like(base, memory_format=torch.contiguous_format)
    own = torch.stack([vector.float() for vector in vectors])
    added = base if offset is None else torch.broadcast_to(offset, base.shape).contiguous()
    block = triton.next_power_of_2(width)
    kernel: Any = gated_sum_kernel
    kernel[(rows,)](
        base.contiguous(), parts.contiguous(), own, added, result, len(parts), rows, width,
        OFFSET=offset is not None, BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )   # fmt: skip
    return result
