"""Low-rank updates that differ from picture to picture of a batch: what S-LoRA and Punica do for tokens of texts.

::

    y[b] += up[b mod N] · (down[b mod N] · x[b])        Chen et al. 2023, arXiv 2310.18547; Sheng et al., 2311.03285

A picture has hundreds of rows, so each is a segment of its own and a product of matrices; their gather of one row a
request is for drawing texts word by word. Ranks may differ: shorter pairs are filled up with zeros. Guidance puts the
same pictures into a batch twice, one half after the other, hence the remainder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def stack_pairs(pairs: Sequence[Pair | None], like: Pair) -> Pair:
    """``(up [out, r], down [r, columns])`` of N pictures → ``[N, out, R]`` and ``[N, R, columns]``, R the largest r.

    Args:
        pairs: of each picture; None for one without an update.
        like: a pair of the layer, for the two widths.
    """
    rank = max(up.shape[1] for up, _ in filter(None, pairs))
    ups = like[0].new_zeros(len(pairs), like[0].shape[0], rank)
    downs = like[1].new_zeros(len(pairs), rank, like[1].shape[1])
    for n, pair in enumerate(pairs):
        if pair is not None:
            ups[n, :, : pair[0].shape[1]], downs[n, : len(pair[1])] = pair
    return ups, downs


def add_segmented_linear(y: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The sum of ``y [B, …, out]`` and each picture's update of ``x [B, …, in]``; B is a multiple of N.

    Without gradients the sum may be y itself.

    Args:
        y: what the layer answered.
        x: what it was given.
        up: ``[N, out, R]``.
        down: ``[N, R, in]``; all of one dtype and device.
    """
    up, down = (_for_batch(part, len(x)) for part in (up, down))
    # The rank comes first in what is narrow: as columns, eight of them took a CPU twice as long.
    inner = torch.bmm(down, x.reshape(len(x), -1, x.shape[-1]).mT)
    return _add_products(y.reshape(len(y), -1, y.shape[-1]), inner.mT, up.mT).view_as(y)


def add_segmented_conv2d(y: Tensor, x: Tensor, up: Tensor, down: Tensor, layer: nn.Conv2d) -> Tensor:
    """The same for a convolution of one group: ``x [B, in, h, w]``, ``y [B, out, h', w']``, ``down [N, R, in·taps]``.

    The pictures become groups of one convolution: each sees its own kernels alone.
    """
    up, down = (_for_batch(part, len(x)) for part in (up, down))
    kernels = down.reshape(-1, x.shape[1], *layer.kernel_size)
    side_by_side = x.reshape(1, -1, *x.shape[2:])
    inner = F.conv2d(side_by_side, kernels, None, layer.stride, layer.padding, layer.dilation, groups=len(x))
    return _add_products(y.flatten(2), up, inner.reshape(len(x), -1, y.shape[2] * y.shape[3])).view(y.shape)


def _add_products(y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``y + left right`` for every picture; in place where nobody needs the old y for a gradient."""
    return torch.baddbmm(y, left, right) if torch.is_grad_enabled() else y.baddbmm_(left, right)


def _for_batch(part: Tensor, pictures: int) -> Tensor:
    """One for each picture of a batch that holds the N pictures several times."""
    times = pictures // len(part)
    return part if times == 1 else part.repeat(times, 1, 1)
