"""Intruder dimensions: strong directions of the adapted weights that are like none of the base model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.low_rank import changes_matrix, weight_changes

TOP = 10          # singular vectors of each layer that are looked at
LIKENESS = 0.5    # largest cosine with a singular vector of the base model's, from which on one is no intruder


@dataclass(frozen=True, slots=True)
class Intruders:
    """How many there are, and where."""

    count: int            # of all directions that were looked at
    directions: int
    layers: tuple[str, ...]   # that have any, in the order of the adapter


@torch.no_grad()
def count_intruders(adapters: AdapterSet, weight_of: Callable[[str], Tensor], strength: float = 1.0) -> Intruders:
    """Count the intruder dimensions of Shuttleworth et al. 2024 (arXiv 2410.21228), which go with forgetting.

    A left singular vector of W + ΔW among the ``TOP`` strongest is one where no left singular vector of W has a cosine
    of ``LIKENESS`` with it. LoRAs trained at high rates have many, full fine-tuning has nearly none.

    Args:
        adapters: the adapter.
        weight_of: the base model's weight by module.
        strength: of the adapter.

    Raises:
        FileError: the adapter does not fit the base model.
    """
    count = directions = 0
    layers: list[str] = []
    for change in weight_changes(Mix(((adapters, strength),)), weight_of):
        if not changes_matrix(change):
            continue
        weight = weight_of(change.spec.name).detach().float().flatten(1)
        before = torch.linalg.svd(weight, full_matrices=False)[0]
        after = torch.linalg.svd(weight + change.matrix().to(weight), full_matrices=False)[0][:, :TOP]
        found = int(((before.T @ after).abs().amax(0) < LIKENESS).sum())
        count, directions = count + found, directions + after.shape[1]
        layers += [change.spec.name] if found else []
    return Intruders(count, directions, tuple(layers))
