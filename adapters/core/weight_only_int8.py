"""A frozen model's weights in 8 bits: int8 codes, and one scale an output channel. Adapters are mounted on top.

W ≈ scale · code with scale = max |W| / 127 of the channel: no weight is off by more than half a scale (rounding to
nearest, as Dettmers et al. 2022, arXiv 2208.07339, sec. 2.1, for each row, without their separate outliers). The layer
stands for the rounded weights: its forward, its backward and every adapter kind see the same. Nothing is ever merged
into them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from atelier.kernels.torch_internals import conv_with_weight

MAX_CODE = 127
# A UNet's first and last convolution: hardly any memory, and half of the error (docs/LOG.md).
_WHOLE = ("conv_in", "conv_out")


class QuantizedLayer(nn.Module):
    """What a frozen layer becomes that keeps codes: it makes its weight whenever it is asked for it."""

    @property
    def weight(self) -> Tensor:
        """The weight that the layer stands for."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, without making it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own operation."""
        return _LayerFunction.apply(x, self) if torch.is_grad_enabled() else _run_layer(x, self)


class Int8Layer(QuantizedLayer):
    """A frozen layer in 8 bits, symmetric about 0."""

    codes: Tensor    # int8, in the shape of the weight
    scales: Tensor   # [out, 1, …], in the dtype of the weight

    @property
    def weight(self) -> Tensor:   # type: ignore[override]
        """The weight that the layer stands for."""
        return self.codes * self.scales

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, without making it."""
        return tuple(self.codes.shape)


class Int8Linear(Int8Layer, nn.Linear):   # type: ignore[misc]
    """A frozen Linear in 8 bits."""


class Int8Conv2d(Int8Layer, nn.Conv2d):   # type: ignore[misc]
    """A frozen Conv2d in 8 bits."""


def _run_layer(x: Tensor, layer: Any) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return conv_with_weight(layer, x, layer.weight, layer.bias)
    return F.linear(x, layer.weight, layer.bias)


class _LayerFunction(torch.autograd.Function):
    """Left to itself, autograd would keep the whole weight of every layer until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        """The layer's output in the dtype of ``x``; only the 8-bit codes are kept for the backward pass."""
        ctx.layer, ctx.shape = layer, x.shape
        return _run_layer(x, layer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:   # type: ignore[override]
        """∂L/∂x in the shape of x; the frozen weight is decoded a second time and gets no gradient."""
        layer, (gradient,) = ctx.layer, gradients
        if isinstance(layer, nn.Conv2d):
            way: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return conv2d_input(ctx.shape, layer.weight, gradient, *way), None
        return gradient @ layer.weight, None


@torch.no_grad()
def quantize_to_int8(model: nn.Module, device: torch.device | str | None = None) -> None:
    """Keep every Linear and Conv2d of a model in 8 bits from now on, in place.

    The first and the last stay as they are, and so do unusual ones. With ``device`` they are rounded there and stay
    there.
    """
    for name, layer in model.named_modules():
        if name in _WHOLE:
            continue
        if type(layer) is nn.Linear:
            _convert(layer, Int8Linear, device)
        elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            _convert(layer, Int8Conv2d, device)


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of a module's weight, without making it; empty where there is none."""
    if isinstance(module, QuantizedLayer):
        return module.shape
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()


def _convert(layer: nn.Linear | nn.Conv2d, kind: type[Int8Layer], device: torch.device | str | None) -> None:
    weight = layer.weight.to(device)
    scales = (weight.float().abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / MAX_CODE).to(weight.dtype)
    scales = torch.where(scales > 0, scales, 1)   # a channel of zeros
    codes = (weight.float() / scales.float()).round().clamp(-MAX_CODE, MAX_CODE).to(torch.int8)
    del layer.weight
    layer.register_buffer("scales", scales)
    layer.register_buffer("codes", codes)
    # So every reference, hook and name of the layer stays as it was.
    layer.__class__ = kind   # type: ignore[assignment]
