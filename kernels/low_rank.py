"""Layers with a low-rank update beside their frozen weight, each or several of them as one operation.

Written out in autograd's own operations, the update costs two full-size additions and five small nodes a layer; at the
batch sizes of teaching a subject those are most of what an adapter costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from atelier.kernels.dispatch import twin


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    """Compute ``x Wᵀ + b + (x downᵀ) upᵀ`` with gradients for x, up and down.

    The weight and the bias are constants here: a frozen base gets no gradient.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
        up: ``[out, rank]``.
        down: ``[rank, in]``; all of one dtype and device.

    Returns:
        ``[..., out]``.
    """
    return _LowRankLinear.apply(x, weight, bias, up, down)


def low_rank_linears(
    x: Tensor, weights: Sequence[Tensor], ups: Sequence[Tensor], downs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Several such layers without bias that read the same x, as one operation.

    All of ``down`` meet x in one product, and the gradient of x is summed where it is made.

    Args:
        x: ``[..., in]``.
        weights, ups, downs: of each layer, as in :func:`low_rank_linear`; ranks may differ.

    Returns:
        A tensor ``[..., out]`` for each layer.
    """
    if twin("low_rank", x):   # it leaves nothing to share
        return tuple(low_rank_linear(x, weight, None, up, down)
                     for weight, up, down in zip(weights, ups, downs, strict=True))   # fmt: skip
    return _LowRankLinears.apply(x, torch.cat(tuple(downs)), *weights, *ups)


def low_rank_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    """The same for a 1×1 convolution: ``W x + b + up (down x)`` at every place.

    Args:
        x: ``[B, in, h, w]``.
        weight: ``[out, in, 1, 1]``; bias, up and down as in :func:`low_rank_linear`.

    Returns:
        ``[B, out, h, w]``.
    """
    return _LowRankPointwise.apply(x, weight.flatten(1), bias, up, down)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
        """``W x + b + up (down x)`` over rows ``x [..., in]``."""
        rows = x.reshape(-1, x.shape[-1])
        if fast := twin("low_rank", x):
            ctx.save_for_backward(x, weight, up, down, None)
            return fast.forward(rows, weight, bias, up, down).view(*x.shape[:-1], -1)
        # The rank comes first in all that is narrow: as columns, four or eight of them took a CPU three to ten times
        # as long.
        inner = down @ rows.T
        ctx.save_for_backward(x, weight, up, down, inner)
        return F.linear(rows, weight, bias).addmm_(inner.T, up.T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:   # type: ignore[override]
        """Gradients of x, up and down, each where it is needed; W and b are frozen."""
        x, weight, up, down, inner = ctx.saved_tensors
        rows, gradient = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, up.shape[0])
        if not ctx.needs_input_grad[0]:
            of_x, of_inner = None, up.T @ gradient.T   # [rank, N]
        elif fast := twin("low_rank", x):
            of_rows, narrow = fast.gradient_of_rows(gradient, weight, up, down)
            of_x, of_inner = of_rows.view_as(x), narrow.T
        else:
            of_inner = up.T @ gradient.T
            of_x = (gradient @ weight).addmm_(of_inner.T, down).view_as(x)
        if ctx.needs_input_grad[3]:
            inner = down @ rows.T if inner is None else inner
        of_up = _of_up(inner, gradient) if ctx.needs_input_grad[3] else None
        of_down = of_inner @ rows if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_up, of_down


def _of_up(inner: Tensor, gradient: Tensor) -> Tensor:
    """The gradient ``[out, rank]`` of ``up``, from ``inner [rank, N]`` and the output's ``[N, out]``.

    Autograd copies a gradient that is not laid out as its parameter, which on a GPU is a launch more. A CPU's products
    are faster by more than that where the rank comes first.
    """
    return (inner @ gradient).T if gradient.device.type == "cpu" else gradient.T @ inner.T


class _LowRankLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
        """All layers that read ``x``: one product with every ``down`` stacked ``[all ranks, in]``."""
        weights, ups = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        rows = x.reshape(-1, x.shape[-1])
        inner = down @ rows.T   # [all ranks, N]
        ctx.save_for_backward(x, down, inner, *layers)
        narrow = inner.split([up.shape[1] for up in ups])
        return tuple(F.linear(rows, weight).addmm_(part.T, up.T).view(*x.shape[:-1], -1)
                     for weight, up, part in zip(weights, ups, narrow, strict=True))   # fmt: skip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:   # type: ignore[override]
        """Gradients of x, of the stacked ``down`` and of each ``up``; the weights are frozen."""
        x, down, inner, *layers = ctx.saved_tensors
        weights, ups = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        rows = x.reshape(-1, x.shape[-1])
        flat = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        ranks = [up.shape[1] for up in ups]
        of_inner = torch.empty_like(inner)
        for part, up, gradient in zip(of_inner.split(ranks), ups, flat, strict=True):
            torch.mm(up.T, gradient.T, out=part)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_inner.T @ down
            for gradient, weight in zip(flat, weights, strict=True):
                of_x.addmm_(gradient, weight)
            of_x = of_x.view_as(x)
        of_ups = [_of_up(part, gradient) for part, gradient in zip(inner.split(ranks), flat, strict=True)]
        return of_x, of_inner @ rows, *(None for _ in weights), *of_ups


class _LowRankPointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
        """The 1×1 convolution as batched products over ``[B, in, h·w]``."""
        columns = x.flatten(2)   # [B, in, N]
        inner = down @ columns
        ctx.save_for_backward(x, weight, up, down, inner)
        every = weight.expand(len(x), -1, -1)
        whole = torch.bmm(every, columns) if bias is None else torch.baddbmm(bias[:, None], every, columns)
        return whole.baddbmm_(up.expand(len(x), -1, -1), inner).view(len(x), -1, *x.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:   # type: ignore[override]
        """Gradients of x, up and down, each where it is needed; W and b are frozen."""
        x, weight, up, down, inner = ctx.saved_tensors
        gradient = gradients[0].flatten(2)   # [B, out, N]
        of_inner, of_x = up.T @ gradient, None
        if ctx.needs_input_grad[0]:
            of_x = (weight.T @ gradient).baddbmm_(down.T.expand(len(x), -1, -1), of_inner).view_as(x)
        of_up = (inner @ gradient.mT).sum(0).T if ctx.needs_input_grad[3] else None
        of_down = (of_inner @ x.flatten(2).mT).sum(0) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_up, of_down
