"""QALoRA: layers that learn to be rounded. A low-rank update goes into the weight before it is quantized.

::

    y = Q(x; s_x, z_x) · Q(W + up·down; s_w, z_w) + bias      He et al. 2024, arXiv 2310.03270, eq. 6

Nothing of ``up`` and ``down`` is left afterwards: only codes are stored (`packed.py`). One switch turns all layers of
a model back into what they were, so teacher and student are one model with one copy of the weights.

Left out: the official code's start from weights that were rounded already (Ŵ instead of W). It saves a copy of W where
the student is another model than the teacher; here there is none to save, and what rounding lost would stay lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers
from atelier.adapters.quantization.bit_policy import LayerBits, is_boundary_layer
from atelier.adapters.quantization.dynamic_quantizers import DynamicQuantizers
from atelier.adapters.quantization.quantizers import fit_weight_quantizer
from atelier.kernels.fake_quant import fake_quant
from atelier.kernels.torch_internals import conv_with_weight


class FakeQuantSwitch:
    """Shared by the layers of one model."""

    def __init__(self) -> None:
        self.on = True
        self.recompute_weights = False   # make each layer's weight again in the backward pass, instead of keeping it


class FakeQuantLayer(nn.Module):
    """What a Linear or Conv2d becomes while it learns."""

    weight: nn.Parameter        # the original, frozen
    bias: nn.Parameter | None
    steps: nn.Parameter         # [out, 1, …]
    zeros: Tensor               # [out, 1, …], whole numbers; they do not learn
    up: nn.Parameter | None     # [out, rank], zero at the start; the UNet's ends have none
    down: nn.Parameter | None   # [rank, in, …]
    bits: LayerBits
    switch: FakeQuantSwitch
    inputs: ActivationQuantizers | DynamicQuantizers | None   # of the whole model
    input_index: int                 # this layer's in it

    cached_weight: Tensor | None = None   # the rounded weight, see `cache_quantized_weights`

    def updated_weight(self) -> Tensor:
        """The weight before rounding, W + up·down, in float32 at least: half precision swallows small updates."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if self.up is None or self.down is None:
            return weight
        return weight + (self.up @ self.down.flatten(1)).reshape(weight.shape)

    def quantized_weight(self) -> Tensor:
        """:meth:`updated_weight` rounded to its grid, in the dtype of the weight; or the cached one."""
        if self.cached_weight is not None:
            return self.cached_weight
        return fake_quant(self.updated_weight(), self.steps, self.zeros, self.bits.weight).to(self.weight.dtype)

    def quantize_input(self, x: Tensor) -> Tensor:
        """The input as the layer sees it."""
        if not isinstance(self.inputs, ActivationQuantizers) or not self.bits.inputs:
            return x
        return fake_quant(x, *self.inputs.layer_parameters(self.input_index, x.ndim), self.bits.inputs)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own operation, rounded or, with the switch off, exactly as it was."""
        if not self.switch.on:
            return self._apply_weight(x, self.weight)
        if self.switch.recompute_weights and torch.is_grad_enabled():
            return checkpoint(self._rounded_forward, x, use_reentrant=False)   # type: ignore[return-value]
        return self._rounded_forward(x)

    def _rounded_forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inputs, DynamicQuantizers):
            return self.inputs.apply_layer(self, self.input_index, x, self.quantized_weight())
        return self._apply_weight(self.quantize_input(x), self.quantized_weight())

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


class FakeQuantLinear(FakeQuantLayer, nn.Linear):   # type: ignore[misc]
    """A Linear that learns to be rounded."""

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


class FakeQuantConv2d(FakeQuantLayer, nn.Conv2d):   # type: ignore[misc]
    """A Conv2d that learns to be rounded."""

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        return conv_with_weight(self, x, weight, self.bias)


_LEARNED = ("steps", "up", "down")


def add_fake_quant(model: nn.Module, plan: Mapping[str, LayerBits], *, rank: int, search: bool) -> FakeQuantSwitch:
    """Turn the planned layers of a model into learning ones, in place; their inputs are not rounded yet.

    Args:
        model: its parameters are frozen by this.
        plan: bits by layer name.
        rank: of QALoRA's pairs; 0 for none.
        search: whether weight ranges are searched, or taken whole.

    Returns:
        The switch of all of them, on.
    """
    model.requires_grad_(False)
    switch = FakeQuantSwitch()
    for name, bits in plan.items():
        layer = model.get_submodule(name)
        levels = fit_weight_quantizer(layer.weight, bits.weight, search=search).broadcast_over(layer.weight.ndim)   # type: ignore[arg-type]
        # So every reference, hook and name of the layer stays as it was.
        layer.__class__ = FakeQuantLinear if isinstance(layer, nn.Linear) else FakeQuantConv2d   # type: ignore[assignment]
        assert isinstance(layer, FakeQuantLayer)
        layer.bits, layer.switch, layer.inputs, layer.input_index = bits, switch, None, -1
        layer.steps = nn.Parameter(levels.steps)
        layer.register_buffer("zeros", levels.zeros)
        layer.up, layer.down = None, None
        if rank and not is_boundary_layer(name):
            _add_pair(layer, rank)
    return switch


def _add_pair(layer: FakeQuantLayer, rank: int) -> None:
    out, *others = layer.weight.shape
    down = torch.empty(rank, *others, device=layer.weight.device)
    nn.init.kaiming_uniform_(down, a=sqrt(5))
    layer.down = nn.Parameter(down)
    layer.up = nn.Parameter(torch.zeros(out, rank, device=layer.weight.device))


def add_activation_quantizers(model: nn.Module, inputs: ActivationQuantizers | DynamicQuantizers) -> None:
    """Give every layer whose plan says so its place among the input levels, in the model's order.

    The levels become part of the model, which tells those of timesteps the timestep of every call.
    """
    for place, layer in enumerate(layer for layer in find_fake_quant_layers(model).values() if layer.bits.inputs):
        # Past nn.Module's own bookkeeping: it is the model's part, not the layer's.
        layer.__dict__["inputs"], layer.input_index = inputs, place
    model.add_module("input_levels", inputs)
    if isinstance(inputs, ActivationQuantizers):
        model.register_forward_pre_hook(inputs.read_timestep, with_kwargs=True)


def find_fake_quant_layers(model: nn.Module) -> dict[str, FakeQuantLayer]:
    """The learning layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FakeQuantLayer)}


@contextmanager
def disable_fake_quant(switch: FakeQuantSwitch) -> Iterator[None]:
    """The model is its own teacher while this is open."""
    switch.on = False
    try:
        yield
    finally:
        switch.on = True


@contextmanager
def cache_quantized_weights(model: nn.Module) -> Iterator[None]:
    """Weights are rounded once and kept while this is open, for drawing and measuring."""
    layers = find_fake_quant_layers(model).values()
    try:
        with torch.no_grad():
            for layer in layers:
                layer.cached_weight = layer.quantized_weight()
        yield
    finally:
        for layer in layers:
            layer.cached_weight = None


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that training changes, by name: what a checkpoint holds."""
    own = {f"{name}.{key}": value for name, layer in find_fake_quant_layers(model).items() for key in _LEARNED
           if isinstance(value := getattr(layer, key), Tensor)}   # fmt: skip
    inputs: Any = getattr(model, "input_levels", None)
    if inputs is not None:
        own |= {f"input_levels.{key}": value for key, value in inputs.named_parameters()}
    return own
