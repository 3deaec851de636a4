"""One adapter of those that several people trained, each on pictures of their own: what a federated round averages.

The ideal is Σ pₖ·ΔWₖ with shares pₖ that add up to 1. Methods:

- ``stack``: the factors side by side, exact; the ranks add up (FLoRA, Wang et al. 2024, arXiv 2409.05976).
- ``svd``: the best approximation of ``stack`` that has a rank given (FlexLoRA).
- ``mean``: the mean of each trained value (FedAvg). Wrong by cross terms for a product of two factors, exact where one
  factor is fixed and common to all, as in LoRA-XS with common bases (Fed-SB, Singhal et al. 2025, arXiv 2502.15436).
- ``corrected``: the mean of ``down`` and, for it, the best ``up`` (after LoRA-FAIR, Bian et al. 2024, arXiv
  2411.14961). Difference: the authors optimise a similarity; here ridge regression has a closed form.

``within_budget`` keeps the parts that contribute most for the values they take (after FedPipe, arXiv 2404.06448).
Difference: its score is a singular value's square for each value of its direction, taken from what was trained.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.low_rank import (
    EXACT,
    LowRankLimits,
    Pair,
    WeightChange,
    WeightOf,
    lora_from_factors,
    mix_to_lora,
    nearest_low_rank,
)
from atelier.adapters.initialization.rank_budget import allocate_ranks

TEAM_METHODS = ("stack", "svd", "mean", "corrected")
RIDGE = 1e-4   # of ``corrected``, as a share of the mean square of the directions
USUAL_RANK = 16   # of ``svd`` where no member has a rank
Member = tuple[AdapterSet, float]   # an adapter and its weight, such as the number of its pictures


@torch.no_grad()
def combine_members(members: Sequence[Member], weight_of: WeightOf, method: str, rank: int | None = None) -> AdapterSet:
    """One adapter of several people's.

    Args:
        members: adapters of one base model with positive weights; only how the weights compare counts.
        weight_of: the base model's weights, asked for only by kinds whose ΔW depends on them.
        method: one of ``TEAM_METHODS``.
        rank: largest of ``svd``; without it the largest rank of any layer of a member.

    Raises:
        SettingError: no such method, a weight that is not positive, or adapters that the method can't combine.
        FileError: an adapter does not fit the base model.
    """
    if method not in TEAM_METHODS:
        raise SettingError(f"There is no method {method!r}. The methods are: {', '.join(TEAM_METHODS)}.")
    shares = _shares([weight for _, weight in members])
    sets = [adapters for adapters, _ in members]
    if method == "mean":
        return _mean(sets, shares)
    if method == "corrected":
        return lora_from_factors(_corrected([_pairs(one, method) for one in sets], shares))
    limits = LowRankLimits(rank=rank or max(_largest_rank(one) for one in sets)) if method == "svd" else EXACT
    return mix_to_lora(Mix(tuple(zip(sets, shares, strict=True))), weight_of, limits)


@torch.no_grad()
def within_budget(adapters: AdapterSet, values: int) -> AdapterSet:
    """A LoRA of at most so many values: the directions of all layers that change most for each value they take.

    Raises:
        SettingError: the kind has no low-rank form, or not even one direction fits.
    """
    pairs = {spec: nearest_low_rank(WeightChange(spec, pair), LowRankLimits(energy=1.0))[0]
             for spec, pair in _pairs(adapters, "A budget").items()}   # fmt: skip
    worth = {spec.name: (up.square().sum(0) * down.square().sum(1)).tolist() for spec, (up, down) in pairs.items()}
    ranks = allocate_ranks(list(pairs), worth, values)
    kept = {spec: (up[:, :rank], down[:rank]) for spec, (up, down) in pairs.items() if (rank := ranks[spec.name])}
    if not kept:
        cheapest = min(spec.rows + spec.columns for spec in pairs)
        raise SettingError(f"{values} values hold not even one direction of a layer. Allow at least {cheapest}.")
    return lora_from_factors(kept)


def _shares(weights: Sequence[float]) -> list[float]:
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise SettingError("Every member needs a weight above 0, such as the number of its pictures.")
    return [weight / sum(weights) for weight in weights]


def _mean(sets: Sequence[AdapterSet], shares: Sequence[float]) -> AdapterSet:
    """The mean of what is trained; what is fixed must be common to all."""
    tensors = [one.tensors() for one in sets]
    trained = {parameter.data_ptr() for parameter in sets[0].parameters()}
    first = tensors[0]
    if any(one.kind != sets[0].kind or one.settings != sets[0].settings for one in sets) or any(
        one.keys() != first.keys() or any(one[key].shape != first[key].shape for key in first) for one in tensors
    ):
        raise SettingError("mean needs adapters of one kind with the same settings, layers and ranks. Use stack or "
                           "svd, which combine any.")
    fixed = [key for key, value in first.items() if value.data_ptr() not in trained]
    if any(not torch.equal(one[key], first[key]) for one in tensors for key in fixed):
        raise SettingError("mean needs adapters whose fixed values are the same, and these have other ones. Let every "
                           "member continue from one adapter, or use stack or svd.")
    result = copy.deepcopy(sets[0])
    result.load_tensors({
        key: value if key in fixed else _weighted_sum([one[key] for one in tensors], shares)
        for key, value in first.items()
    })   # fmt: skip
    return result.requires_grad_(False)


def _weighted_sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Σ share · tensor."""
    return torch.stack([share * tensor for share, tensor in zip(shares, tensors, strict=True)]).sum(0)


def _corrected(members: Sequence[Mapping[Spec, Pair]], shares: Sequence[float]) -> dict[Spec, Pair]:
    """For each layer the mean ``down`` and the ``up`` that brings the product nearest to Σ share · up @ down.

    Ridge towards the mean ``up``: ΔU = (ΔW − ū d̄) d̄ᵀ (d̄ d̄ᵀ + λ I)⁻¹, by products no wider than the rank.
    """
    first = members[0]
    if any(one.keys() != first.keys() or any(one[spec][1].shape != first[spec][1].shape for spec in first)
           for one in members):   # fmt: skip
        raise SettingError("corrected needs adapters with the same layers and ranks. Use stack or svd, which combine "
                           "any.")
    result: dict[Spec, Pair] = {}
    for spec in first:
        ups, downs = zip(*(one[spec] for one in members), strict=True)
        up, down = _weighted_sum(ups, shares), _weighted_sum(downs, shares)
        products = [own_up @ (own_down @ down.T) for own_up, own_down in zip(ups, downs, strict=True)]
        ideal = _weighted_sum(products, shares)
        gram = down @ down.T
        ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram))
        result[spec] = (up + torch.linalg.solve(gram + ridge, (ideal - up @ gram).T).T, down)
    return result


def _pairs(adapters: AdapterSet, what: str) -> dict[Spec, Pair]:
    pairs = {adapter.spec: adapter.factors() for adapter in adapters}
    changes_bias = any(adapter.bias_delta(None) is not None for adapter in adapters if not adapter.reads_bias)
    if changes_bias or any(pair is None for pair in pairs.values()):
        raise SettingError(f"{what} needs adapters that are products of two factors, such as LoRA, and {adapters.kind} "
                           "is not one. Use the method stack or svd.")
    return {spec: pair for spec, pair in pairs.items() if pair is not None}


def _largest_rank(adapters: AdapterSet) -> int:
    ranks = [len(pair[1]) for adapter in adapters if (pair := adapter.factors()) is not None]
    return max(ranks, default=USUAL_RANK)
