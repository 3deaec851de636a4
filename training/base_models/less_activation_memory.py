"""A frozen UNet that keeps less for the backward pass: the same bits, less memory (``kernels/frozen_layers.py``)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from atelier.kernels.frozen_layers import frozen_conv2d, gated_gelu

MIN_PARAMETERS = 100_000_000   # values of a UNet; a smaller one saves little and takes 3 % longer (docs/LOG.md)


class FrozenConv2d(nn.Conv2d):
    """A convolution that keeps nothing of its input, as long as neither weight nor bias gets a gradient."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, in, h, w]`` → ``[B, out, h', w']``."""
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        plain: Any = not isinstance(self.padding, str) and self.padding_mode == "zeros"
        through = torch.is_grad_enabled() and input.requires_grad and not learns
        if not through or not plain or torch.compiler.is_compiling():   # a compiler chooses itself what it keeps
            return super().forward(input)
        way: Any = (self.stride, self.padding, self.dilation, self.groups)
        return frozen_conv2d(input, self.weight, self.bias, *way)


class FrozenGEGLU(GEGLU):
    """The gate of a transformer's feed-forward part."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., in]`` → ``[..., n]``."""
        return gated_gelu(self.proj(hidden_states))


def save_less_for_backward(unet: nn.Module) -> None:
    """From now on, if it is large; layers of other classes, such as those in codes, stay as they are."""
    if sum(parameter.numel() for parameter in unet.parameters()) < MIN_PARAMETERS:
        return
    for layer in unet.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = FrozenConv2d   # so every reference, hook and name of the layer stays as it was
        elif type(layer) is GEGLU:
            layer.__class__ = FrozenGEGLU
