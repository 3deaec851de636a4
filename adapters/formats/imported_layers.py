"""From the tensors of imported layers to an adapter set: which class computes which algorithm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.settings import Settings
from atelier.adapters.formats import lycoris, orthogonal, peft_kinds
from atelier.adapters.formats.layer_parts import SHARED, algorithm_of
from atelier.adapters.formats.lycoris import Imported
from atelier.kernels.torch_internals import buffers_of

SHARED_NAME = "shared"   # what all layers have in common, in an adapter set
_CLASSES: dict[str, type[Imported]] = {
    "LoRA": lycoris.ImportedLora, "AdaLoRA": lycoris.ImportedAdalora, "LoHa": lycoris.ImportedLoha,
    "LoKr": lycoris.ImportedLokr, "GLoRA": lycoris.ImportedGlora, "full": lycoris.ImportedFull,
    "norm": lycoris.ImportedNorm, "IA3": lycoris.ImportedIa3, "bias": lycoris.ImportedBias,
    "OFT": orthogonal.ImportedOft, "BOFT": orthogonal.ImportedBoft, "OFT of inputs": orthogonal.ImportedInputOft,
    "BOFT of inputs": orthogonal.ImportedInputBoft, "HRA": orthogonal.ImportedHra,
    "IA3 of PEFT": peft_kinds.ImportedScaling, "whole layers": peft_kinds.ImportedWhole,
    "SHiRA": peft_kinds.ImportedShira, "FourierFT": peft_kinds.ImportedFourier, "WaveFT": peft_kinds.ImportedWavelet,
    "MiSS": peft_kinds.ImportedMiss, "RandLoRA": peft_kinds.ImportedRandlora, "VeRA": peft_kinds.ImportedVera,
    "HiRA": peft_kinds.ImportedHira, "C3A": peft_kinds.ImportedC3a, "GraLoRA": peft_kinds.ImportedGralora,
}   # fmt: skip


def create_imported(layers: Mapping[Spec, Mapping[str, Tensor]]) -> AdapterSet:
    """An adapter set of the parts of each layer, whatever mixture of algorithms they are.

    Parts of ``layer_parts.SHARED`` are kept once where they are the same in all layers.
    """
    common: dict[str, Tensor] = {}
    for part in SHARED:
        values = [parts[part] for parts in layers.values() if part in parts]
        if values and all(value is values[0] or torch.equal(value, values[0]) for value in values):
            common[part] = values[0]
    shared = nn.Module()
    for part, value in common.items():
        shared.register_buffer(part, value)
    adapters = [_adapter(spec, parts, shared) for spec, parts in layers.items()]
    return AdapterSet(Imported, Settings(), adapters, shared={SHARED_NAME: shared} if common else None)


def algorithm_names(adapters: AdapterSet) -> tuple[str, ...]:
    """What the layers of an imported adapter are, such as LoRA and norm; empty for kinds that are trained here."""
    found = (algorithm_of(buffers_of(adapter)) for adapter in adapters if isinstance(adapter, Imported))
    return tuple(dict.fromkeys(algorithm.name for algorithm in found if algorithm))


def _adapter(spec: Spec, parts: Mapping[str, Tensor], shared: nn.Module) -> Imported:
    algorithm = algorithm_of(parts)
    assert algorithm is not None
    own = {part: value for part, value in parts.items() if part not in buffers_of(shared)}
    return _CLASSES[algorithm.name](spec, own, shared)
