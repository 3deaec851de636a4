"""Layers in the tensors of their own algorithm, as LyCORIS writes them: DoRA, OFT, LoKr … without a detour over a LoRA.

ComfyUI and Forge divide DoRA's lengths of rows by those of the base's rows, where LyCORIS and PEFT divide by those of
the changed rows. No file is right for all, so one for ComfyUI holds lengths that come out right there.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from atelier.adapters.core.base import Adapter
from atelier.adapters.formats.layer_parts import algorithm_of
from atelier.adapters.formats.layer_shapes import glora_is_new
from atelier.adapters.formats.low_rank import Pair, WeightChange
from atelier.adapters.formats.lycoris import Imported, ImportedLokr, ImportedLora
from atelier.adapters.formats.orthogonal import ImportedOft
from atelier.adapters.kinds.dora import Dora
from atelier.adapters.kinds.oft import Oft

_ALGORITHMS = ("LoRA", "LoHa", "LoKr", "GLoRA", "IA3", "OFT", "BOFT")
# Written anew: strengths as alpha alone, lengths in one way, biases by the change that they come to.
_REWRITTEN = ("alpha", "scale", "scalar", "dora_scale", "magnitude", "base_lengths", "diff_b", "up_bias", "set_bias")
_RANKED = {"LoRA": "down", "LoHa": "hada_w1_b", "GLoRA": "a2"}   # algorithm → the part with a row for each rank


def own_tensors(adapter: Adapter, weight: Tensor, *, for_comfyui: bool) -> dict[str, Tensor] | None:
    """A layer as the parts of its own algorithm (``layer_parts``); None where LyCORIS has no such algorithm.

    Args:
        adapter: the layer, at strength 1.
        weight: the base model's original one.
        for_comfyui: whether DoRA's lengths are for ComfyUI's and Forge's rule.
    """
    layer = _in_imported_form(adapter, weight)
    if not isinstance(layer, Imported):
        return None
    found = algorithm_of(dict(layer.named_buffers()))
    if found is None or found.name not in _ALGORITHMS:
        return None
    parts = _strengths_folded(layer, found.name)
    if found.name == "LoRA" and "mid" not in parts:
        ones = (1 for _ in weight.shape[2:])
        parts |= {"up": parts["up"].reshape(*parts["up"].shape[:2], *ones),
                  "down": parts["down"].reshape(-1, *weight.shape[1:])}   # fmt: skip
    if layer.lengths_given:
        parts["dora_scale"] = _lengths(layer, weight, for_comfyui=for_comfyui)
    return parts


def _in_imported_form(adapter: Adapter, weight: Tensor) -> Adapter:
    """Atelier's DoRA with the lengths themselves in place of their difference to the base's, its OFT with LyCORIS's
    blocks, which turn the other way; others as they are.
    """
    if isinstance(adapter, Oft):
        return ImportedOft(adapter.spec, {"oft_blocks": -adapter.skew().detach() / 2})
    if not isinstance(adapter, Dora):
        return adapter
    up, down, longer = (adapter.get_parameter(name).detach() for name in ("up", "down", "lengthen"))
    lengths = weight.detach().flatten(1).to(longer).norm(dim=1) + longer
    ones = (1 for _ in weight.shape[2:])
    parts = {"up": (adapter.scale * up).reshape(*up.shape, *ones), "down": down.reshape(-1, *weight.shape[1:])}
    return ImportedLora(adapter.spec, {**parts, "magnitude": lengths})


def plain_tensors(change: WeightChange) -> dict[str, Tensor]:
    """A change of any kind as the parts of a LoRA where that is exact and smaller, else as the difference itself."""
    shape = change.spec.shape
    if len(shape) == 1:
        return {"w_norm": change.matrix().flatten()}
    if change.pair is None or len(change.pair[1]) * sum((shape[0], prod(shape[1:]))) >= prod(shape):
        return {"diff": change.matrix().reshape(shape)}
    up, down = change.pair
    ones = (1 for _ in shape[2:])
    return {"up": up.reshape(*up.shape, *ones), "down": down.reshape(-1, *shape[1:]),
            "alpha": torch.tensor(float(len(down)))}   # fmt: skip


def dora_factors(adapter: Adapter, weight: Tensor) -> tuple[Pair, Tensor] | None:
    """Factors and lengths ``[rows]`` of a DoRA as PEFT computes it; None where a layer is none."""
    layer = _in_imported_form(adapter, weight)
    if not isinstance(layer, ImportedLora) or (lengths := _row_lengths(layer, weight)) is None:
        return None
    return layer.own_factors(), lengths


def lengths_as_they_come(pair: Pair, weight: Tensor) -> Tensor:
    """The lengths ``[rows]`` with which a DoRA of these factors is a plain LoRA."""
    return (weight.flatten(1).to(pair[0]) + pair[0] @ pair[1]).norm(dim=1)


def _row_lengths(layer: Imported, weight: Tensor) -> Tensor | None:
    """The lengths of rows after the change; None where there are none, or those of columns."""
    lengths = layer.row_lengths(weight)
    if lengths is None or not layer.number("base_lengths"):
        return lengths
    return lengths * _stretch(layer, weight)


def _stretch(layer: Imported, weight: Tensor) -> Tensor:
    """By how much the update makes each row longer, before lengths are set."""
    before = weight.flatten(1).double()
    return (before + layer.own_update(weight.double()).flatten(1)).norm(dim=1) / before.norm(dim=1)


def _strengths_folded(layer: Imported, algorithm: str) -> dict[str, Tensor]:
    """The parts of a layer with all that says how strong it is in ``alpha``, or in a factor where that has no say."""
    parts = {part: value.double() for part, value in layer.named_buffers() if part not in _REWRITTEN}
    if isinstance(layer, ImportedOft):   # its alpha is no strength: what it limits is written as it comes out
        return {**parts, layer.blocks: layer.skew() / 2, "alpha": torch.tensor(0.0)}
    if algorithm == "IA3":
        return {**parts, "weight": parts["weight"] * layer.number("scale", 1.0), "on_input": layer.need("on_input")}
    if isinstance(layer, ImportedLokr):
        part = "lokr_w1_a" if "lokr_w1_a" in parts else "lokr_w1"
        rank = next((len(parts[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), 1)
        return {**parts, part: parts[part] * layer.factor(), "alpha": torch.tensor(float(rank))}
    if algorithm == "GLoRA" and not glora_is_new({part: tuple(value.shape) for part, value in parts.items()}):
        parts = {"a1": parts["a2"], "a2": parts["a1"], "b1": parts["b2"], "b2": parts["b1"]}
    rank = parts[_RANKED[algorithm]].shape[0]
    return {**parts, "alpha": torch.tensor(layer.scaling(rank) * rank)}


def _lengths(layer: Imported, weight: Tensor, *, for_comfyui: bool) -> Tensor:
    by_row = _row_lengths(layer, weight)
    if by_row is None:   # of columns, which all tools divide by the changed ones
        return layer.need("dora_scale").double()
    if for_comfyui:
        by_row = by_row / _stretch(layer, weight)
    return by_row.double().reshape(-1, *(1 for _ in weight.shape[1:]))
