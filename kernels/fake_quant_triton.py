"""Fake quantization in one launch: each value is read once and written once; so is each gradient.

The gradients of step size and zero point are summed block by block, and the blocks by torch: the same bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 8


@triton.jit
def half_to_even(v):
    """Round as torch does; v + ½ may round up itself, so what is too far is taken back."""
    r = tl.floor(v + 0.5)
    return r - tl.where((r - v > 0.5) | ((r - v == 0.5) & (r - 2.0 * tl.floor(r * 0.5) == 1.0)), 1.0, 0.0)


@triton.jit
def forward_kernel(v_ptr, step_ptr, zero_ptr, y_ptr, length, top, BLOCK: tl.constexpr):
    """One block of one row."""
    row = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = row.to(tl.int64) * length + i
    step, zero = tl.load(step_ptr + row), tl.load(zero_ptr + row)
    v = tl.load(v_ptr + place, mask=i < length, other=0.0).to(tl.float32)
    code = half_to_even(tl.div_rn(v, step)) + zero
    code = tl.minimum(tl.maximum(code, 0.0), top)
    tl.store(y_ptr + place, ((code - zero) * step).to(y_ptr.dtype.element_ty), mask=i < length)


@triton.jit
def backward_kernel(
    v_ptr, step_ptr, zero_ptr, g_ptr, of_v_ptr, of_step_ptr, of_zero_ptr, length, top, BLOCK: tl.constexpr
):
    """Gradients of one block's values, and its share of those of the row's step size and zero point."""
    row = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = row.to(tl.int64) * length + i
    step, zero = tl.load(step_ptr + row), tl.load(zero_ptr + row)
    ratio = tl.div_rn(tl.load(v_ptr + place, mask=i < length, other=0.0).to(tl.float32), step)
    gradient = tl.load(g_ptr + place, mask=i < length, other=0.0).to(tl.float32)
    rounded = half_to_even(ratio)
    low, high = rounded + zero < 0.0, rounded + zero > top
    tl.store(of_v_ptr + place, tl.where(low | high, 0.0, gradient).to(of_v_ptr.dtype.element_ty), mask=i < length)
    slope = tl.where(low, -zero, tl.where(high, top - zero, rounded - ratio))
    part = row.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(of_step_ptr + part, tl.sum(gradient * slope, axis=0))
    tl.store(of_zero_ptr + part, tl.sum(tl.where(low | high, gradient, 0.0), axis=0) * -step)


def forward(values: Tensor, step: Tensor, zero: Tensor, top: int) -> Tensor:
    """What :func:`atelier.kernels.fake_quant.fake_quant` gives."""
    rows, steps, zeros = _rows(values, step, zero)
    result = torch.empty_like(rows)
    kernel: Any = forward_kernel
    kernel[_grid(rows)](rows, steps, zeros, result, rows.shape[1], float(top), BLOCK=BLOCK, num_warps=WARPS)
    return result.view_as(values)


def backward(
    values: Tensor, step: Tensor, zero: Tensor, gradient: Tensor, top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, step size and zero point."""
    rows, steps, zeros = _rows(values, step, zero)
    of_values, grid = torch.empty_like(rows), _grid(rows)
    of_step, of_zero = torch.empty(2, grid[1], grid[0], device=values.device)
    kernel: Any = backward_kernel
    kernel[grid](rows, steps, zeros, gradient.reshape(rows.shape).contiguous(), of_values, of_step, of_zero,
                 rows.shape[1], float(top), BLOCK=BLOCK, num_warps=WARPS)   # fmt: skip
    return of_values.view_as(values), of_step.sum(1).view_as(step), of_zero.sum(1).view_as(zero)


def _rows(values: Tensor, step: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values of one step size as a row."""
    return values.reshape(step.numel(), -1).contiguous(), step.reshape(-1).contiguous(), zero.reshape(-1).contiguous()


def _grid(rows: Tensor) -> tuple[int, int]:
    return -(-rows.shape[1] // BLOCK), rows.shape[0]
