"""How many bits each layer of a UNet gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from atelier.adapters.core.settings import SettingError


class LayerBits(NamedTuple):
    """Of a layer's weight, and of its input; 0 leaves the input as it is."""

    weight: int
    inputs: int


PRESETS: dict[str, LayerBits] = {
    "w8a8": LayerBits(8, 8), "w6a8": LayerBits(6, 8), "w5a8": LayerBits(5, 8), "w4a8": LayerBits(4, 8),
    "w4a4": LayerBits(4, 4), "w2a8": LayerBits(2, 8), "w8": LayerBits(8, 0), "w4": LayerBits(4, 0),
}   # fmt: skip
# What touches the latents and the timestep decides over everything after it: EfficientDM's code keeps it in 8 bits,
# without QALoRA. The parts that carry the residual stream past the blocks stay whole.
_BOUNDARY_LAYERS = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2",
                    "add_embedding.linear_1", "add_embedding.linear_2")   # fmt: skip
_UNQUANTIZED = ("conv_shortcut", "downsamplers.0.conv")
# Inputs whose few largest values a range in 4 bits can't hold: what the gate of a feed-forward lets through (QuEST,
# arXiv 2402.03666, finds that feed-forwards fail first), and the text's features. EfficientDM's code has no such rule.
# It costs no byte of a file; docs/LOG.md has what it gives.
_OUTLIERS = ("attn2.to_k", "attn2.to_v", "ff.net.2")
HIGH = 8


def assign_bits(model: nn.Module, preset: str, *, outliers: bool = True) -> dict[str, LayerBits]:
    """Bits of every Linear and Conv2d that is not kept whole, by its name, in the model's order.

    Args:
        model: a UNet.
        preset: name of the bits of most layers.
        outliers: whether inputs that are known for outliers have 8 bits where the others have fewer.

    Raises:
        SettingError: there is no such preset.
    """
    if preset not in PRESETS:
        raise SettingError(f"preset is {preset!r}, but it must be one of: {', '.join(PRESETS)}.")
    low = PRESETS[preset]
    careful = LayerBits(low.weight, HIGH) if outliers and low.inputs else low
    return {name: _to_8_bits(low) if is_boundary_layer(name) else careful if name.endswith(_OUTLIERS) else low
            for name, module in model.named_modules() if _is_quantizable(name, module)}   # fmt: skip


def is_boundary_layer(name: str) -> bool:
    """Whether a layer belongs to the UNet's ends, which have 8 bits in every preset and learn nothing."""
    return name in _BOUNDARY_LAYERS


def raise_sensitive_layers(
    plan: Mapping[str, LayerBits], harm: Mapping[str, float], sizes: Mapping[str, int], share: float
) -> dict[str, LayerBits]:
    """The plan with the layers that suffer most in 8 bits, as long as they hold at most ``share`` of the weights.

    Args:
        plan: bits by layer.
        harm: the error that quantizing this layer alone makes, by layer.
        sizes: weights by layer.
        share: of all planned weights, 0 to 1.
    """
    result, room = dict(plan), share * sum(sizes[name] for name in plan)
    for name in sorted(harm, key=lambda each: harm[each] / sizes[each], reverse=True):   # most help for a byte first
        if plan[name] != _to_8_bits(plan[name]) and sizes[name] <= room:
            result[name], room = _to_8_bits(plan[name]), room - sizes[name]
    return result


def _to_8_bits(bits: LayerBits) -> LayerBits:
    """Weight and input in 8 bits, unless inputs are not rounded at all."""
    return LayerBits(HIGH, HIGH if bits.inputs else 0)


def _is_quantizable(name: str, module: nn.Module) -> bool:
    if name.endswith(_UNQUANTIZED):
        return False
    plain = isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear) or (plain and module.padding_mode == "zeros")
