"""Rounding to a few levels that training can see through: the quantizer of EfficientDM with its exact gradients.

He et al. 2024, arXiv 2310.03270, sec. 3, after LSQ (Esser et al. 2020, arXiv 1902.08153). With Q = 2^bits − 1::

    c = round(v / s) + z               v̂ = (clip(c, 0, Q) − z) · s          round half to even

    ∂v̂/∂v = 1                    0           0
    ∂v̂/∂s = round(v/s) − v/s     −z          Q − z
    ∂v̂/∂z = 0                    −s          −s
            for 0 ≤ c ≤ Q        for c < 0   for c > Q

The three cases are told apart by ``c`` before it is clipped, so a value that rounds to the first or last level from
beyond it still learns. ``torch.fake_quantize_*`` scale the gradient of s by 1/√(N·Q); EfficientDM does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atelier.kernels.dispatch import twin

ROUNDING_OFFSET = 1.5 * 2**23


def fake_quant(values: Tensor, step: Tensor | float, zero: Tensor | float, bits: int) -> Tensor:
    """The value each number is stored as, with gradients for values, step size and zero point.

    Without gradients, a single step size and zero point may be plain numbers; then it is computed in float32.

    Args:
        values: ``[rows, …]``, of any floating dtype; what it is computed in is the dtype of ``step``.
        step: step size ``s`` > 0, either ``[rows, 1, …]`` (a weight's output channels; a batch's own timesteps) or
            a single one, ``[]``.
        zero: zero point ``z`` in the shape of ``step``; a whole number if codes are to be exact.
        bits: 1 to 8.

    Returns:
        In the shape and dtype of ``values``.
    """
    if not torch.is_grad_enabled():   # to be asked by autograd takes as long as a small layer
        return _rounded(values, step, zero, top_code(bits))
    return _FakeQuant.apply(values, step, zero, top_code(bits))


def encode(values: Tensor, step: Tensor | float, zero: Tensor | float, bits: int) -> Tensor:
    """Integer codes, uint8 from 0 to 2^bits − 1: what :func:`fake_quant` rounds to. Its arguments, no gradients.

    A single step size and zero point may be plain numbers here too, which takes half as long on a CPU.
    """
    if isinstance(step, Tensor):
        return _ratio(values, step).round_().add_(zero).clamp_(0, top_code(bits)).to(torch.uint8)
    # So near to 1.5 · 2²³, float32 has no fractions: the sum is rounded, half to even, and its lowest byte is the
    # number. Rounding, and turning floats into bytes, would be passes of their own over the memory.
    ends: Any = (ROUNDING_OFFSET - zero, ROUNDING_OFFSET - zero + top_code(bits))
    sums = _ratio(values, step).add_(ROUNDING_OFFSET).clamp_(*ends)
    return sums.view(torch.int32).to(torch.int8).view(torch.uint8).add_(int(zero))


def decode(codes: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """The numbers that codes stand for, in the dtype of ``step``."""
    return (codes.to(step.dtype) - zero) * step


def top_code(bits: int) -> int:
    """The largest code.

    Raises:
        ValueError: codes of so many bits don't fit a byte.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}, but it must be between 1 and 8.")
    return 2**bits - 1


def _ratio(values: Tensor, step: Tensor | float) -> Tensor:
    """Values in step sizes."""
    return values.to(step.dtype if isinstance(step, Tensor) else torch.float32) / step


def _rounded(values: Tensor, step: Tensor | float, zero: Tensor | float, top: int) -> Tensor:
    if isinstance(step, Tensor) and step.dtype == torch.float32 and (fast := twin("fake_quant", values)):
        return fast.forward(values, step, zero, top)
    # The zero point moves the ends instead of the codes, there and back.
    ends: Any = (-zero, top - zero)
    return _ratio(values, step).round_().clamp_(*ends).mul_(step).to(values.dtype)


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, zero: Tensor, top: int) -> Tensor:
        """``values`` rounded to the grid of ``step`` and ``zero`` with codes 0 … top."""
        ctx.save_for_backward(values, step, zero)
        ctx.top = top
        return _rounded(values, step, zero, top)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:   # type: ignore[override]
        """Gradients of values, step and zero, each where it is needed: the module says by which rule."""
        values, step, zero = ctx.saved_tensors
        if step.dtype == torch.float32 and (fast := twin("fake_quant", values)):
            found = fast.backward(values, step, zero, gradients[0], ctx.top)
            return *(g if needed else None for g, needed in zip(found, ctx.needs_input_grad, strict=False)), None
        gradient = gradients[0].to(step.dtype)
        ratio = _ratio(values, step)
        rounded = ratio.round()
        low, high = rounded + zero < 0, rounded + zero > ctx.top
        outside = low | high
        of_values = gradient.masked_fill(outside, 0).to(values.dtype) if ctx.needs_input_grad[0] else None
        of_step = of_zero = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(low, -zero, torch.where(high, ctx.top - zero, rounded - ratio))
            of_step = (gradient * slope).sum_to_size(step.shape)
        if ctx.needs_input_grad[2]:
            of_zero = (gradient * outside * -step).sum_to_size(zero.shape)
        return of_values, of_step, of_zero, None
