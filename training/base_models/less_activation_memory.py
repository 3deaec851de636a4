"""A frozen UNet saves fewer activations for the backward pass: same results, less memory (kernels/frozen_layers.py)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from atelier.kernels.frozen_layers import frozen_conv2d, gated_gelu

MIN_PARAMETERS = 100_000_000   # of a UNet; in a smaller one it saves little and takes 3 % longer (docs/LOG.md)


class FrozenConv2d(nn.Conv2d):
    """A convolution that does not save its input, as long as neither weight nor bias gets a gradient."""

    def forward(self, input: Tensor) -> Tensor:
        """The convolution ``[B, in, h, w]`` → ``[B, out, h', w']``, with the frozen backward pass where it applies."""
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        plain: Any = not isinstance(self.padding, str) and self.padding_mode == "zeros"
        input_gradient_only = torch.is_grad_enabled() and input.requires_grad and not trained
        if not input_gradient_only or not plain or torch.compiler.is_compiling():   # a compiler decides what to save
            return super().forward(input)
        options: Any = (self.stride, self.padding, self.dilation, self.groups)
        return frozen_conv2d(input, self.weight, self.bias, *options)


class FrozenGEGLU(GEGLU):
    """The gated activation of a transformer's feed-forward layer, which saves less than diffusers'."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """GEGLU ``[..., in]`` → ``[..., n]``, with GELU computed a second time in the backward pass."""
        return gated_gelu(self.proj(hidden_states))


def save_less_for_backward(unet: nn.Module) -> None:
    """Switch the layers of a large UNet; layers of other classes, such as quantized ones, stay as they are."""
    if sum(parameter.numel() for parameter in unet.parameters()) < MIN_PARAMETERS:
        return
    for layer in unet.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = FrozenConv2d   # so every reference, hook and name of the layer stays as it was
        elif type(layer) is GEGLU:
            layer.__class__ = FrozenGEGLU
