"""From other tools' files to an adapter set: nothing changed, nothing dropped without a word."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.formats.detect import Contents, look
from atelier.adapters.formats.lycoris import imported_set
from atelier.adapters.formats.native import read_tensors
from atelier.adapters.formats.safetensors_header import FileError

# Layers whose weight is a 3×3 or a 1×1 convolution; all others are linear, but for normalizations.
_WIDE = re.compile(r"(conv_in|conv_out|\.conv1|\.conv2|samplers\.\d\.conv)$")
_NARROW = re.compile(r"\.conv_shortcut$")
_PROJECTION = re.compile(r"attentions\.\d+\.proj_(in|out)$")   # a 1×1 convolution in Stable Diffusion 1, else linear
_KERNEL = 9


def read_foreign(path: Path) -> tuple[AdapterSet, Contents]:
    """Open an adapter file of any tool.

    Raises:
        FileError: see ``contents.look``; also when the tensors of a layer don't fit each other.
    """
    contents = look(path)
    tensors = read_tensors(path)
    layers: dict[Spec, dict[str, Tensor]] = {}
    for name, keys in contents.layers.items():
        parts = {part: tensors[key] for part, key in keys.items()}
        component = name.split(".", 1)[0]
        if "up" in parts and "alpha" not in parts and component in contents.alphas:
            parts["alpha"] = torch.tensor(contents.alphas[component])
        layers[Spec(name, _shape(name, parts, contents.family, path))] = parts
    return imported_set(layers).requires_grad_(False), contents


def untrained(adapters: AdapterSet) -> int:
    """How many layers change nothing, because a factor is all zeros."""
    return sum(any(not value.any() for key, value in adapter.state_dict().items() if key in _FACTORS)
               for adapter in adapters)   # fmt: skip


_FACTORS = ("up", "down", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "diff")


def _shape(name: str, parts: dict[str, Tensor], family: str, path: Path) -> tuple[int, ...]:
    """The shape of the weight a layer changes."""
    if "diff" in parts:
        return tuple(parts["diff"].shape)
    if "norm" in name.rpartition(".")[2]:
        return tuple(next(iter(parts.values())).shape)
    taps = _KERNEL if _WIDE.search(name) else 1
    rows, columns = _sides(parts, taps)
    if columns % taps:
        raise FileError(f"{path.name}: the tensors of {name} don't fit each other. Fetch the file again.")
    kernel = (3, 3) if taps == _KERNEL else (1, 1)
    convolution = taps > 1 or _NARROW.search(name) or (_PROJECTION.search(name) and family in ("sd1", "embedded"))
    return (rows, columns // taps, *(kernel if convolution else ()))


def _sides(parts: dict[str, Tensor], taps: int) -> tuple[int, int]:
    """Rows and columns of ΔW as a matrix; 0 for a side that the file doesn't tell."""
    size = {part: value.shape for part, value in parts.items()}
    if "up" in parts:
        return size["up"][0], size["down"][1:].numel() * (taps if "mid" in parts else 1)
    if "hada_t1" in parts:
        return size["hada_w1_a"][1], size["hada_w1_b"][1] * taps
    if "hada_w1_a" in parts:
        return size["hada_w1_a"][0], size["hada_w1_b"][1:].numel()
    if "on_input" in parts:
        given = size["weight"].numel()
        return (0, given * taps) if parts["on_input"].item() else (given, 0)
    if parts.keys() <= {"diff_b", "b_norm"}:
        return next(iter(size.values()))[0], 0
    if "a1" in parts:
        new = size["a1"][1] == size["a2"][0] == size["b1"][1] == size["b2"][0]
        return (size["b1"] if new else size["b2"])[0], (size["b2"] if new else size["b1"])[1:].numel()
    small = size.get("lokr_w1") or torch.Size((size["lokr_w1_a"][0], size["lokr_w1_b"][1]))
    if "lokr_w2" in parts:
        large = torch.Size((size["lokr_w2"][0], size["lokr_w2"][1:].numel()))
    elif "lokr_t2" in parts:
        large = torch.Size((size["lokr_w2_a"][1], size["lokr_w2_b"][1] * taps))
    else:
        large = torch.Size((size["lokr_w2_a"][0], size["lokr_w2_b"][1:].numel()))
    return small[0] * large[0], small[1] * large[1]
