"""A linear layer with a low-rank update beside its frozen weight, as one operation.

Written out in autograd's own operations, the update costs two full-size additions and five small nodes a layer; at the
batch sizes of teaching a subject those are most of what an adapter costs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import twin


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


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, up, down)
        rows = x.reshape(-1, x.shape[-1])
        if fast := twin("low_rank", x):
            return fast.forward(rows, weight, bias, up, down).view(*x.shape[:-1], -1)
        # `down @ rows.T` is formed again in the backward pass: cheaper than keeping it for every layer. The rank comes
        # first in all that is narrow: as columns, four or eight of them took a CPU three to ten times as long.
        return F.linear(rows, weight, bias).addmm_((down @ rows.T).T, up.T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:   # type: ignore[override]
        x, weight, up, down = ctx.saved_tensors
        rows, gradient = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, up.shape[0])
        if not ctx.needs_input_grad[0]:
            of_x, inner = None, up.T @ gradient.T   # [rank, N]
        elif fast := twin("low_rank", x):
            of_rows, narrow = fast.gradient_of_rows(gradient, weight, up, down)
            of_x, inner = of_rows.view_as(x), narrow.T
        else:
            inner = up.T @ gradient.T
            of_x = (gradient @ weight).addmm_(inner.T, down).view_as(x)
        of_up = ((down @ rows.T) @ gradient).T if ctx.needs_input_grad[3] else None
        of_down = inner @ rows if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_up, of_down
