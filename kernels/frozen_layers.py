"""Operations of a frozen model that keep less for the backward pass than autograd would, and compute the same bits.

Autograd keeps a convolution's input for the gradient of its weight, which a frozen one does not get; and of a gated
linear unit all of what it computes on the way, where its input is enough.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input


def frozen_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *way: Any) -> Tensor:
    """A convolution ``[B, in, h, w]`` → ``[B, out, h', w']`` whose weight and bias are constants.

    Gradients reach x alone, and of x only its shape is kept. ``way``: stride, padding, dilation (two numbers each) and
    groups, in the order of torch's own.
    """
    return _FrozenConv2d.apply(x, weight, bias, *way)


def gated_gelu(projected: Tensor) -> Tensor:
    """First half · gelu(second half), ``[..., 2n]`` → ``[..., n]`` (Shazeer 2020, arXiv 2002.05202, GEGLU).

    Only ``projected`` is kept: GELU is computed a second time in the backward pass.
    """
    return _GatedGelu.apply(projected)


class _FrozenConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *way: Any) -> Tensor:
        """torch's conv2d; keeps the weight and of x its shape alone."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.way = x.shape, way
        return torch.conv2d(x, weight, bias, *way)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:   # type: ignore[override]
        """∂L/∂x; the frozen weight and bias get no gradient."""
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, gradients[0], *ctx.way), *(None for _ in range(2 + len(ctx.way)))


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        """``values · gelu(gates)``, keeping ``projected`` alone."""
        ctx.save_for_backward(projected)
        values, gates = projected.chunk(2, -1)
        return values * F.gelu(gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:   # type: ignore[override]
        """∂L/∂projected ``[..., 2n]``, with GELU computed a second time."""
        (projected,), (gradient,) = ctx.saved_tensors, gradients
        values, gates = projected.chunk(2, -1)
        result = torch.empty_like(projected)
        of_values, of_gates = result.chunk(2, -1)
        torch.mul(gradient, F.gelu(gates), out=of_values)
        torch.ops.aten.gelu_backward.grad_input(gradient * values, gates, grad_input=of_gates)
        return result
