"""A compressed model as it is stored and used: integer codes instead of weights.

A file holds for each layer ``<name>.codes`` (packed, see kernels/int8_linear.py), ``.steps`` and ``.zeros``; for all
inputs together ``input_levels.steps`` and ``.zeros [timesteps, layers]``, or ``.clips [layers]`` where every input has
a range of its own; and what was kept whole, in float16. Its header says the bits of each layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from atelier.adapters.core.parse import parse_json
from atelier.adapters.core.weight_only_int8 import QuantizedLayer, weight_shape
from atelier.adapters.formats.adapter_info import QUANTIZATION_ENTRY
from atelier.adapters.formats.native import write_tensors
from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers
from atelier.adapters.quantization.bit_policy import LayerBits
from atelier.adapters.quantization.dynamic_quantizers import DynamicQuantizers
from atelier.adapters.quantization.fake_quant_layers import find_fake_quant_layers
from atelier.adapters.quantization.int8 import (
    POINT,
    ConvGeometry,
    PreparedWeight,
    onednn_conv2d,
    onednn_linear,
    prepare_weight,
)
from atelier.kernels.dispatch import twin
from atelier.kernels.fake_quant import decode, encode, fake_quant
from atelier.kernels.int8_linear import PackedWeight, int8_linear, pack, packed_rows, unpack

# Products below which asking for whole numbers takes longer than they save (docs/notes/0010).
MIN_INTEGER_PRODUCTS = 4_000_000
_LEVELS = "input_levels"


class PackedLayer(QuantizedLayer):
    """A frozen layer whose weight is stored as packed codes and decoded when it is used."""

    codes: Tensor     # uint8 [packed_rows(out, bits), …]
    steps: Tensor     # [out] float32
    zeros: Tensor     # [out] uint8
    bias: nn.Parameter | None
    bits: LayerBits
    inputs: ActivationQuantizers | DynamicQuantizers | None = None   # of the whole model; None: inputs stay whole
    input_index: int = -1                   # this layer's in it
    products_per_input: int = 0                           # products of every number of the input
    prepared_weight: PreparedWeight | None = None   # the weight as this machine's integer arithmetic wants it
    caches_weight: bool = False                     # whether the weight stays once it was made
    cached_weight: Tensor | None = None              # the weight, if it was
    used_integers: bool = False                   # whether the last call was in whole numbers

    @property
    def weight(self) -> Tensor:   # type: ignore[override]
        """The weight that the codes stand for, in the dtype the model computes in."""
        if self.cached_weight is not None:
            return self.cached_weight
        made = self._decoded()
        if self.caches_weight:
            self.cached_weight = made
        return made

    def _decoded(self) -> Tensor:
        steps, zeros = (part.reshape(-1, *[1] * (self.codes.ndim - 1)) for part in (self.steps, self.zeros.float()))
        codes = unpack(self.codes, self.bits.weight, len(self.steps))
        return decode(codes, steps, zeros).to(self.computes_in)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, without making it."""
        return len(self.steps), *self.codes.shape[1:]

    @property
    def computes_in(self) -> torch.dtype:
        """That of the parts that were kept whole."""
        return self.steps.dtype if self.bias is None else self.bias.dtype

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own operation on its rounded input."""
        self.used_integers = False
        if self.inputs is None:
            return super().forward(x)
        if isinstance(self.inputs, DynamicQuantizers):
            return self.inputs.apply_layer(self, self.input_index, x, self.weight)
        scalar = not torch.is_grad_enabled() and x.device.type == "cpu"
        numbers = self.inputs.scalar_parameters(self.input_index) if scalar else None
        if numbers is None:
            parameters = self.inputs.layer_parameters(self.input_index, x.ndim)
            return super().forward(fake_quant(x, *parameters, self.bits.inputs))
        if self.prepared_weight is None or x.numel() * self.products_per_input < MIN_INTEGER_PRODUCTS:
            return super().forward(fake_quant(x, *numbers, self.bits.inputs))
        self.used_integers = True
        return self._multiply(encode(x, *numbers, self.bits.inputs), *numbers, self.prepared_weight).to(x.dtype)

    def _multiply(self, codes: Tensor, step: float, zero: int, ready: PreparedWeight) -> Tensor:
        raise NotImplementedError


class PackedLinear(PackedLayer, nn.Linear):   # type: ignore[misc]
    """A frozen Linear that keeps packed codes instead of a weight."""

    def forward(self, x: Tensor) -> Tensor:   # type: ignore[override]
        """In whole numbers on tensor cores, where there are some; else as every packed layer."""
        suits = self.bits.inputs == 8 and self.bits.weight in (2, 4, 8) and not torch.is_grad_enabled()
        if isinstance(self.inputs, ActivationQuantizers) and suits and twin("int8_linear", x):
            step, zero = self.inputs.layer_parameters(self.input_index, x.ndim)
            if not step.ndim:
                self.used_integers = True
                weight = PackedWeight(self.codes, self.steps, self.zeros, self.bits.weight)
                return int8_linear(x, step, zero, weight, self.bias)
        return super().forward(x)

    def _multiply(self, codes: Tensor, step: float, zero: int, ready: PreparedWeight) -> Tensor:
        return onednn_linear(codes, step, zero, ready)


class PackedConv2d(PackedLayer, nn.Conv2d):   # type: ignore[misc]
    """A frozen Conv2d that keeps packed codes instead of a weight."""

    def _multiply(self, codes: Tensor, step: float, zero: int, ready: PreparedWeight) -> Tensor:
        return onednn_conv2d(codes, step, zero, ready)


@dataclass(frozen=True, slots=True)
class PackedContents:
    """What the header of a compressed model says."""

    preset: str
    layers: dict[str, LayerBits]
    timesteps: list[int]   # with step sizes of their own; none where no input is rounded or each has its own range
    dynamic: bool          # whether each input has its own range


@torch.no_grad()
def save_packed(model: nn.Module, path: Path, preset: str, metadata: Mapping[str, str]) -> None:
    """Write a model of learning layers as codes. Nothing of their low-rank pairs remains."""
    layers = find_fake_quant_layers(model)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        codes = encode(layer.updated_weight(), layer.steps, layer.zeros, layer.bits.weight)
        tensors[f"{name}.codes"] = pack(codes, layer.bits.weight)
        tensors[f"{name}.steps"] = layer.steps.flatten().float()
        tensors[f"{name}.zeros"] = layer.zeros.flatten().to(torch.uint8)
    inputs: Any = getattr(model, _LEVELS, None)
    timesteps: list[int] = []
    if isinstance(inputs, DynamicQuantizers):
        tensors[f"{_LEVELS}.clips"] = inputs.clips.detach()
    elif inputs is not None:
        steps, zeros = inputs.table()
        tensors |= {f"{_LEVELS}.steps": steps, f"{_LEVELS}.zeros": zeros.to(torch.uint8)}
        timesteps = inputs.timesteps.tolist()
    coded = {f"{name}.{key}" for name in layers for key in ("weight", "steps", "zeros", "up", "down")}
    rest = {key: value.half() for key, value in model.state_dict().items()
            if key not in coded and not key.startswith(f"{_LEVELS}.")}   # fmt: skip
    header = {"preset": preset, "layers": {name: layer.bits for name, layer in layers.items()},
              "timesteps": timesteps, "dynamic": isinstance(inputs, DynamicQuantizers)}   # fmt: skip
    kept = {key: value.cpu().contiguous() for key, value in {**tensors, **rest}.items()}
    write_tensors(path, kept, {QUANTIZATION_ENTRY: json.dumps(header), **metadata})


def read_packed_contents(path: Path) -> PackedContents:
    """Read what a compressed model's header says.

    Raises:
        ValueError: it is none.
    """
    with safe_open(path, "pt") as file:
        header = parse_json((file.metadata() or {}).get(QUANTIZATION_ENTRY, "null"))
    if header is None:
        raise ValueError(f"{path.name} is not a compressed model")
    layers = {name: LayerBits(*bits) for name, bits in header["layers"].items()}
    return PackedContents(header["preset"], layers, header["timesteps"], header.get("dynamic", False))


def load_packed(model: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Turn a model without weights (on the meta device) into the one that a file holds, on the CPU.

    Raises:
        ValueError: no compressed model, or one of another architecture.
    """
    contents = read_packed_contents(path)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}   # noqa: SIM118 (not a dict)
    inputs: ActivationQuantizers | DynamicQuantizers | None = None
    bits = [each.inputs for each in contents.layers.values() if each.inputs]
    if contents.dynamic:
        inputs = DynamicQuantizers(bits, tensors.pop(f"{_LEVELS}.clips"))
    elif contents.timesteps:
        steps, zeros = tensors.pop(f"{_LEVELS}.steps"), tensors.pop(f"{_LEVELS}.zeros")
        inputs = ActivationQuantizers(contents.timesteps, steps, zeros, bits)
    place = 0
    for name, each in contents.layers.items():
        layer = _become(model, name, each)
        if each.inputs:
            # Past nn.Module's own bookkeeping: it is the model's part, not the layer's.
            layer.__dict__["inputs"], layer.input_index = inputs, place
            place += 1
    wrong = sorted(tensors.keys() ^ model.state_dict().keys())
    if wrong:
        raise ValueError(f"{path.name} does not match its configuration at {', '.join(wrong[:3])}")
    exact = {f"{name}.{key}" for name in contents.layers for key in ("codes", "steps", "zeros")}
    state = {key: value if key in exact else value.to(dtype) for key, value in tensors.items()}
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    if inputs is not None:
        model.add_module(_LEVELS, inputs.requires_grad_(False))
        if isinstance(inputs, ActivationQuantizers):
            model.register_forward_pre_hook(inputs.read_timestep, with_kwargs=True)


def prepare_layers(model: nn.Module) -> None:
    """Choose how each packed layer computes on the device it is on, once it is there.

    On a CPU, layers compute in whole numbers where this machine does that exactly and they have enough to multiply.
    The others keep their weight once it is made: making it in every call would take longer than the layer itself. On a
    GPU it is made in every call, because there memory is what is short.
    """
    layers = packed_layers(model)
    for layer in layers:
        layer.caches_weight, layer.cached_weight = layer.codes.device.type == "cpu", None
        layer.products_per_input = prod(layer.shape) // layer.shape[1]
        fixed = isinstance(layer.inputs, ActivationQuantizers) and layer.bits.inputs == 8
        layer.prepared_weight = _in_numbers(layer) if fixed else None
    if any(layer.prepared_weight is not None for layer in layers):
        model.to(memory_format=torch.channels_last)   # oneDNN's whole numbers know no other   # type: ignore[call-overload]


def _in_numbers(layer: PackedLayer) -> PreparedWeight | None:
    codes = unpack(layer.codes, layer.bits.weight, len(layer.steps))
    numbers = (codes.short() - layer.zeros.short().reshape(-1, *[1] * (codes.ndim - 1))).to(torch.int8)
    way = ConvGeometry(layer.stride, layer.padding, layer.dilation) if isinstance(layer, nn.Conv2d) else POINT   # type: ignore[arg-type]
    return prepare_weight(numbers, layer.steps, layer.bias, way)


def count_integer_layers(model: nn.Module) -> tuple[int, int]:
    """How many of the packed layers computed in whole numbers when they were last asked, of how many."""
    layers = packed_layers(model)
    return sum(layer.used_integers for layer in layers), len(layers)


def packed_layers(model: nn.Module) -> list[PackedLayer]:
    """The layers of codes, in the model's order."""
    return [layer for layer in model.modules() if isinstance(layer, PackedLayer)]


def _become(model: nn.Module, name: str, bits: LayerBits) -> PackedLayer:
    """Turn one layer into one of codes, still without them."""
    layer = model.get_submodule(name)
    out, *others = weight_shape(layer)
    del layer.weight
    layer.__class__ = PackedLinear if isinstance(layer, nn.Linear) else PackedConv2d   # type: ignore[assignment]
    assert isinstance(layer, PackedLayer)
    rows = packed_rows(out, bits.weight)
    for key, shape in (("codes", (rows, *others)), ("steps", (out,)), ("zeros", (out,))):
        layer.register_buffer(key, torch.empty(shape, device="meta"))
    layer.bits = bits
    return layer
