"""Ranks from a budget: one greedy routine, whatever says how much each further rank of a module is worth."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.kinds.lora import Lora, LoraSettings


def allocate_ranks(specs: Sequence[Spec], worth: Mapping[str, Sequence[float]], budget: int) -> dict[str, int]:
    """Give every module a rank so that their factors hold at most ``budget`` values in all.

    Greedy: the next rank always goes where it is worth most for each value it takes, once, before the training, as EVA
    (arXiv 2410.07170) does. AdaLoRA and IncreLoRA allocate during the training: the kind ``adalora``.

    Args:
        specs: the target modules.
        worth: by module name, what the first, second, third … rank is worth; missing ones are worth nothing.
        budget: parameters to spend; a rank costs rows + columns.

    Returns:
        Rank by module name, 0 where a module is not worth one: for ``catalog.create_adapters``.

    >>> two = [Spec("a", (4, 4)), Spec("b", (2, 2))]
    >>> allocate_ranks(two, {"a": [8.0, 1.0], "b": [3.0, 2.9]}, budget=16)
    {'a': 1, 'b': 2}
    """
    ranks = {spec.name: 0 for spec in specs}
    cost = {spec.name: spec.rows + spec.columns for spec in specs}
    waiting = [(-worth[name][0] / cost[name], place, name) for place, name in enumerate(ranks) if worth.get(name)]
    heapq.heapify(waiting)
    while waiting:
        _, place, name = heapq.heappop(waiting)
        if cost[name] > budget:
            continue   # a smaller module may still fit
        budget -= cost[name]
        ranks[name] += 1
        if ranks[name] < len(worth[name]):
            heapq.heappush(waiting, (-worth[name][ranks[name]] / cost[name], place, name))
    return ranks


def importance_from_inputs(inputs: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """EVA's worth: the share of its inputs' variance that each direction of a module explains.

    Args:
        inputs: by module name, the ``inputs`` that ``starts.observe`` found, ``[k, columns]``.
    """
    worth: dict[str, list[float]] = {}
    for name, directions in inputs.items():
        energy = directions.square().sum(1)
        worth[name] = (energy / energy.sum().clamp_min(1e-30)).tolist()
    return worth


def importance_from_gradients(
    gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor], most: int
) -> dict[str, list[float]]:
    """The loss's sensitivity Σ|W·gradient| (AdaLoRA's, eq. 8); each further rank of a module is worth less."""
    score = {name: (weights[name].float() * gradient).abs().sum().item() for name, gradient in gradients.items()}
    return {name: [value / rank for rank in range(1, most + 1)] for name, value in score.items()}


@torch.no_grad()
def resize_ranks(adapters: AdapterSet, specs: Sequence[Spec], ranks: Mapping[str, int]) -> AdapterSet:
    """A LoRA set with other ranks, to go on training with: grow and prune, as :func:`allocate_ranks` says.

    A module that keeps its rank or grows has the ΔW it had; one that shrinks keeps the largest directions.

    Args:
        adapters: a LoRA set, with any start whose first product is zero.
        specs: all target modules, those without a rank so far too.
        ranks: by module name.

    Raises:
        ValueError: another kind, or a start that is subtracted.
    """
    settings = adapters.settings
    if not isinstance(settings, LoraSettings) or settings.start in ("weight", "gradient"):
        raise ValueError(f"only a LoRA that starts at zero can change its ranks, not {adapters.kind}")
    device = next(adapters.parameters()).device
    resized = create_adapters(adapters.kind, settings.to_dict(), specs, ranks).to(device)
    known = {adapter.spec.name: adapter for adapter in adapters}
    for new in resized:
        if isinstance(old := known.get(new.spec.name), Lora) and isinstance(new, Lora):
            rank = len(new.down)
            up, down = (old.up, old.down) if len(old.down) <= rank else _largest(old.up, old.down, rank)
            new.up[:, : len(down)] = up * (old.scale / new.scale)
            new.down[: len(down)] = down
    return resized


def _largest(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best pair of a smaller rank, by the SVD of the small matrix between two orthonormal bases."""
    left, inner = torch.linalg.qr(up)
    right, other = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(inner @ other.T)
    root = s[:rank].sqrt()
    return left @ u[:, :rank] * root, root[:, None] * (v[:rank] @ right.T)
