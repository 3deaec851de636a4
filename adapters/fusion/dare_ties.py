"""DARE and TIES: values of an update are dropped before updates are added, so that fewer of them meet.

Both look at single values of ΔW, so what comes out is whole matrices, without a low-rank form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atelier.adapters.attach.mount import find_target_modules
from atelier.adapters.core.base import AdapterSet, weight_of
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.imported_layers import create_imported
from atelier.adapters.formats.low_rank import WeightChange, weight_changes
from atelier.adapters.formats.module_names import canonical_name
from atelier.adapters.fusion.pairwise import Models, base_value

DROP_RATE = 0.8   # share of the values that DARE drops: AutoLoRA's baseline
KEEP_RATIO = 0.2   # share of the values that TIES keeps: its authors' choice


def dare(models: Models, mix: Mix, drop: float = DROP_RATE, seed: int = 0) -> AdapterSet:
    """DARE (Yu et al. 2023, arXiv 2311.03099): of each ΔW a random share is dropped, the rest divided by 1 − drop.

    The same seed drops the same values, layer by layer and adapter by adapter in their order.
    """
    generator = torch.Generator().manual_seed(seed)

    def rescaled(deltas: Sequence[Tensor]) -> Tensor:
        """Sum of the ΔWs after random values are dropped, over 1 − drop."""
        kept = [delta * (torch.rand(delta.shape, generator=generator) >= drop).to(delta) for delta in deltas]
        return torch.stack(kept).sum(0) / (1 - drop)

    return _merge_updates(models, mix, rescaled)


def ties(models: Models, mix: Mix, keep: float = KEEP_RATIO) -> AdapterSet:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim each ΔW, elect a sign for each value, average those who agree.

    Trimming keeps the largest values of each layer; strengths count in the election.
    """
    def trim_and_elect(deltas: Sequence[Tensor]) -> Tensor:
        """Mean of the trimmed values whose sign wins the election."""
        return elect_signs(torch.stack([keep_largest(delta, keep) for delta in deltas]))

    return _merge_updates(models, mix, trim_and_elect)


def keep_largest(delta: Tensor, keep: float) -> Tensor:
    """The ``keep`` share of the values that are largest in size; 0 for the others."""
    count = max(1, int(keep * delta.numel()))
    places = delta.abs().flatten().topk(count).indices
    return torch.zeros_like(delta).flatten().index_put((places,), delta.flatten()[places]).view_as(delta)


def elect_signs(deltas: Tensor) -> Tensor:
    """``[K, …]`` → ``[…]``: the mean of those values that have the sign of their sum."""
    agree = (deltas * deltas.sum(0)) > 0
    return (deltas * agree).sum(0) / agree.sum(0).clamp_min(1)


@torch.no_grad()
def _merge_updates(models: Models, mix: Mix, method: Callable[[Sequence[Tensor]], Tensor]) -> AdapterSet:
    """Every matrix by ``method``; biases and normalizations are added, for there is nothing to drop."""
    modules = {name: module for part, _ in mix.parts for name, module in find_target_modules(models, part).items()}
    found: dict[str, list[WeightChange]] = {}
    for part in mix.active():
        for change in weight_changes(Mix((part,)), lambda name: base_value(modules, name)):
            found.setdefault(canonical_name(change.spec.name), []).append(change)
    return create_imported({own[0].spec: _parts(own, weight_of(modules[own[0].spec.name]), method)
                         for own in found.values()})   # fmt: skip


def _parts(
    own: Sequence[WeightChange], weight: Tensor, method: Callable[[Sequence[Tensor]], Tensor]
) -> dict[str, Tensor]:
    biases = [change.bias for change in own if change.bias is not None]
    parts = {"diff_b": torch.stack(biases).sum(0)} if biases else {}
    deltas = [change.matrix().reshape(weight.shape) for change in own]
    if weight.dim() == 1:
        return {"w_norm": torch.stack(deltas).sum(0), **({"b_norm": parts["diff_b"]} if biases else {})}
    return {"diff": method(deltas), **parts}
