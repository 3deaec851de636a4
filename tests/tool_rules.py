"""What other tools make of a file, written down a second time from their loaders' rules: names, types, ΔW.

Independent of adapters/: no name table, no algebra of ours is used. Each function takes the tensors of a file and the
UNet's weights by diffusers' names, and returns ΔW of the layers that the tool would change; None where it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Deltas = dict[str, Tensor]
FORGE_LIMIT = 12


def comfy(tensors: Tensors, weights: Tensors) -> Deltas | None:
    """comfy/lora.py: a map from every accepted spelling of a base key, then the known endings."""
    bases: dict[str, str] = {}
    for name in weights:
        bases["lora_unet_" + name.replace(".", "_")] = name
        bases["lycoris_" + name.replace(".", "_")] = name
        for prefix in ("", "unet."):
            old = re.sub(r"\.to_(q|k|v)$", r".processor.to_\1", name)
            old = re.sub(r"\.to_out\.0$", ".processor.to_out", old)
            if "attn" not in name or old != name:
                bases[prefix + old] = name
    found: Deltas = {}
    for base, name in bases.items():
        for up, down in ((".lora_up.weight", ".lora_down.weight"), ("_lora.up.weight", "_lora.down.weight"),
                         (".lora_B.weight", ".lora_A.weight"), (".lora.up.weight", ".lora.down.weight")):   # fmt: skip
            if base + up in tensors:
                alpha = tensors.get(base + ".alpha")
                found[name] = _product(tensors[base + up], tensors[base + down], alpha, weights[name])
        if base + ".diff" in tensors:
            found[name] = tensors[base + ".diff"].double().reshape(weights[name].shape)
    return found


def forge(tensors: Tensors, weights: Tensors) -> Deltas | None:
    """As ComfyUI; more than twelve unmatched keys and the whole file is dropped."""
    found = comfy(tensors, weights)
    known = {"lora_unet_" + name.replace(".", "_") for name in weights}
    unmatched = [key for key in tensors if key.split(".")[0] not in known and ".processor." not in key]
    return found if found and len(unmatched) <= FORGE_LIMIT else None


def a1111(tensors: Tensors, weights: Tensors) -> Deltas | None:
    """Every key is cut at its first dot; what is no underscored name is lost without a word."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.partition(".")
        layers.setdefault(layer, {})[part] = tensor
    found: Deltas = {}
    for name, weight in weights.items():
        parts = layers.get("lora_unet_" + name.replace(".", "_"), {})
        if "lora_up.weight" in parts:
            found[name] = _product(parts["lora_up.weight"], parts["lora_down.weight"], parts.get("alpha"), weight)
        elif "diff" in parts:
            found[name] = parts["diff"].double().reshape(weight.shape)
    return found


def invoke(tensors: Tensors, weights: Tensors) -> Deltas | None:
    """As A1111, but an unknown layer refuses the file, and so does one that can't be told from its attn2 widths."""
    known = {"lora_unet_" + name.replace(".", "_") for name in weights}
    layers = {key.partition(".")[0] for key in tensors}
    if not layers <= known or not any(layer.endswith(("_attn2_to_k", "_attn2_to_v")) for layer in layers):
        return None
    return a1111(tensors, weights)


def _product(up: Tensor, down: Tensor, alpha: Tensor | None, weight: Tensor) -> Tensor:
    scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
    product = torch.tensordot(up.double().flatten(1), down.double(), dims=1)
    return scale * product.reshape(weight.shape)


TOOLS = {"ComfyUI": comfy, "A1111": a1111, "Forge": forge, "InvokeAI": invoke}
