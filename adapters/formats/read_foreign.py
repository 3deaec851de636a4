"""From other tools' files to an adapter set: nothing changed, nothing dropped without a word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.formats.check_values import LARGEST_RMS, value_problem
from atelier.adapters.formats.detect import AdapterContents, alpha_zero_note, detect
from atelier.adapters.formats.imported_layers import create_imported
from atelier.adapters.formats.native import read_tensors
from atelier.adapters.formats.safetensors_header import FileError


def read_foreign(path: Path) -> tuple[AdapterSet, AdapterContents]:
    """Open an adapter file of any tool.

    Raises:
        FileError: see ``detect.detect``; also when a value is no ordinary number, or an update is absurdly large.
    """
    contents = detect(path)
    tensors = read_tensors(path)
    if different := next((pair for pair in contents.copies if not torch.equal(*(tensors[key] for key in pair))), None):
        raise FileError(f"{path.name} is damaged: {different[0]} and {different[1]} must be the same. Download or copy "
                        "it again.")
    layers: dict[Spec, dict[str, Tensor]] = {}
    for name, layer in contents.layers.items():
        parts = {part: tensors[key] for part, key in layer.keys.items()}
        if problem := value_problem({layer.keys[part]: value for part, value in parts.items()}):
            raise FileError(f"{path.name} is damaged: {problem}. Download or copy it again. If that does not help, its "
                            "training failed.")
        if whole := next((part for part, value in parts.items() if _is_compressed(part, value)), ""):
            raise FileError(f"{path.name} can't be used: {layer.keys[whole]} contains whole numbers, so its values "
                            "were compressed. Look for the file as it was before that.")
        numbers = {part: torch.tensor(value, dtype=torch.float64) for part, value in layer.settings.items()}
        layers[Spec(name, layer.shape)] = parts | numbers
    adapters = create_imported(layers).requires_grad_(False)
    if large := next((adapter.spec.name for adapter in adapters if _rms(adapter) > LARGEST_RMS), ""):
        raise FileError(f"{path.name} is damaged: its update to {large} is thousands of times larger than the weights "
                        "themselves. Download or copy it again.")
    return adapters, replace(contents, notes=(*contents.notes, *_value_notes(layers)))


def _is_compressed(part: str, value: Tensor) -> bool:
    """Whether a factor consists of whole numbers; places in a matrix do by nature."""
    return value.numel() > 1 and part != "shira_indices" and not (value.is_floating_point() or value.is_complex())


def _value_notes(layers: dict[Spec, dict[str, Tensor]]) -> list[str]:
    zero = sum("alpha" in parts and not parts["alpha"].any() and "scale" not in parts for parts in layers.values())
    off = sum(any(part in parts and not parts[part].any() for part in ("scale", "scalar")) for parts in layers.values())
    silent = f"{off} of its {len(layers)} layers have strength 0, so they change nothing."
    return [*([alpha_zero_note(zero, len(layers))] if zero else []), *([silent] if off else [])]


@torch.no_grad()
def _rms(adapter: Adapter) -> float:
    """Root mean square of ΔW's entries, of those that a low-rank pair or a difference gives."""
    pair = adapter.factors()
    if pair is None:
        whole = dict(adapter.named_buffers()).get("diff")
        return 0.0 if whole is None else whole.double().square().mean().sqrt().item()
    up, down = pair[0].double(), pair[1].double()
    total = ((up.T @ up) * (down @ down.T)).sum().clamp_min(0)
    return (total / (up.shape[0] * down.shape[1])).sqrt().item()


def count_zero_layers(adapters: AdapterSet) -> int:
    """How many layers change nothing, because a factor is all zeros."""
    return sum(any(not value.any() for key, value in adapter.state_dict().items() if key in _FACTORS)
               for adapter in adapters)   # fmt: skip


_FACTORS = ("up", "down", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "diff")
