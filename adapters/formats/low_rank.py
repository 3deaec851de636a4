"""Several adapters as one: what a Mix adds to each module, and the low-rank pair nearest to it.

Side by side, low-rank pairs stay exact: their ranks add up. Anything else is summed as a dense ΔW and cut by SVD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.imported_layers import create_imported
from atelier.adapters.formats.module_names import canonical_name, has_no_bias
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.adapters.kinds.lora import Lora
from atelier.adapters.kinds.sparse.dynamic_sparse import DynamicSparse
from atelier.adapters.kinds.sparse.shira import Shira

WeightOf = Callable[[str], Tensor]   # a module's name → the base model's original weight; with `.bias`, its bias
Pair = tuple[Tensor, Tensor]         # up [rows, rank], down [rank, columns]; scale and strength are in them
Vectors = dict[str, Tensor]          # change of a bias or a normalization, by LyCORIS's names

_EXTRA = 8         # directions that the randomized SVD looks for beyond those that are kept
_POWERS = 1        # its power iterations (Halko et al. 2011, arXiv 0909.4061, algorithm 4.4)
_WORTH_IT = 3      # a matrix must be this many times wider than what is sought, or the full SVD is as fast


@dataclass(frozen=True, slots=True)
class LowRankLimits:
    """How far a file may be from the adapter, and how large; an exact pair is cut only where these are given."""

    energy: float | None = None   # share of each layer's ‖ΔW‖² to keep at least
    rank: int | None = None       # largest rank of a layer, whatever the energy


EXACT = LowRankLimits()
ENERGY, RANK = 0.9999, 128   # where there is no exact pair: an error of 1 %, if the rank suffices


@dataclass(frozen=True, slots=True)
class WeightChange:
    """What a Mix adds to one module, all strengths included."""

    spec: Spec
    pair: Pair | None = None      # exact, where there is one
    dense: Tensor | None = None   # ΔW in the module's shape, where there is none
    bias: Tensor | None = None    # change to its bias [rows]

    def matrix(self) -> Tensor:
        """ΔW as ``[rows, columns]``."""
        if self.pair is not None:
            return self.pair[0] @ self.pair[1]
        assert self.dense is not None
        return self.dense.flatten(1) if self.dense.dim() > 1 else self.dense[:, None]


@torch.no_grad()
def weight_changes(mix: Mix, weight_of: WeightOf) -> Iterator[WeightChange]:
    """What the Mix adds to each module, in the order of its first adapters; one at a time, to save memory.

    ``weight_of`` is asked only where an adapter's update depends on the base model.

    Raises:
        FileError: an adapter does not fit the base model.
    """
    parts: dict[str, list[tuple[Adapter, float]]] = {}
    for adapters, strength in mix.active():
        for adapter in adapters:
            scaled = strength * adapters.scale_of(adapter.spec.name)
            parts.setdefault(canonical_name(adapter.spec.name), []).append((adapter, scaled))
    return (_change(own, weight_of) for own in parts.values())


@torch.no_grad()
def _change(parts: list[tuple[Adapter, float]], weight_of: WeightOf) -> WeightChange:
    spec = parts[0][0].spec
    base = weight_of(f"{spec.name}.bias") if any(adapter.reads_bias for adapter, _ in parts) else None
    shifts = [shift * strength for adapter, strength in parts if (shift := adapter.bias_delta(base)) is not None]
    bias = torch.stack(shifts).sum(0) if shifts else None
    pairs = [(adapter.factors(), strength) for adapter, strength in parts]
    if all(pair is not None for pair, _ in pairs):
        ups, downs = zip(*((pair[0] * strength, pair[1]) for pair, strength in pairs if pair), strict=True)
        return WeightChange(spec, pair=(torch.cat(ups, 1), torch.cat(downs)), bias=bias)
    whole = [adapter for (adapter, _), (pair, _) in zip(parts, pairs, strict=True) if pair is None]
    enough = not any(adapter.reads_weight or 0 in adapter.spec.shape for adapter in whole)
    weight = torch.zeros(whole[0].spec.shape) if enough else weight_of(spec.name)
    if not all(adapter.matches_shape(weight.shape) for adapter, _ in parts):
        raise FileError(f"{spec.name} has a different shape in the base model ({list(weight.shape)}) than in the "
                        "adapter. Choose a base model of the adapter's family with --base.")
    dense = torch.stack([adapter.delta(weight) * strength for adapter, strength in parts]).sum(0)
    return WeightChange(Spec(spec.name, tuple(weight.shape)), dense=dense, bias=bias)


def nearest_low_rank(change: WeightChange, limits: LowRankLimits = EXACT) -> tuple[Pair, float]:
    """A low-rank pair for a change, and the share of ‖ΔW‖² that it keeps: 1 where it is exact."""
    if change.pair is not None:
        up, down = change.pair
        if limits == EXACT and down.shape[0] <= min(up.shape[0], down.shape[1]):
            return change.pair, 1.0
        left, inner = torch.linalg.qr(up)
        right, other = torch.linalg.qr(down.T)
        u, s, v = torch.linalg.svd(inner @ other.T, full_matrices=False)
        rank, energy = _enough(s, s.square().sum().item(), limits.energy or 1.0, limits.rank or len(s))
        root = s[:rank].sqrt()
        return (left @ u[:, :rank] * root, root[:, None] * (v[:rank] @ right.T)), energy
    matrix = change.matrix()
    most, wanted = limits.rank or RANK, limits.energy or ENERGY
    u, s, v = truncated_svd(matrix, most)
    rank, energy = _enough(s, matrix.square().sum().item(), wanted, most)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root, root[:, None] * v[:rank]), energy


def truncated_svd(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The top of the SVD, ``u [m, k]``, ``s [k]``, ``v [k, n]`` with k ≥ count where there are so many.

    Large matrices by a randomized range finder, always with the same random numbers.
    """
    if min(matrix.shape) <= _WORTH_IT * (count + _EXTRA):
        return torch.linalg.svd(matrix, full_matrices=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=count + _EXTRA, niter=_POWERS)
    return u, s, v.T


def _enough(values: Tensor, total: float, energy: float, most: int) -> tuple[int, float]:
    """How many singular values hold the energy, at most so many, and the share they do hold."""
    if not total:
        return 1, 1.0
    shares = values.double().square().cumsum(0) / total
    # A rounding error short of 1 is all there is.
    short = int((shares < min(energy, 1 - 1e-12)).sum())
    rank = max(1, min(short + 1, most, len(values)))
    return rank, min(1.0, shares[rank - 1].item())


@torch.no_grad()
def mix_to_lora(mix: Mix, weight_of: WeightOf, limits: LowRankLimits = EXACT) -> AdapterSet:
    """The Mix as one LoRA with a rank of its own for every layer, and its changes of biases and normalizations."""
    pairs: dict[Spec, Pair] = {}
    vectors: dict[Spec, Vectors] = {}
    for change in weight_changes(mix, weight_of):
        if own := change_vectors(change):
            vectors[change.spec] = own
        if changes_matrix(change):
            pairs[change.spec] = nearest_low_rank(change, limits)[0]
    return lora_with_vectors(pairs, vectors)


def changes_matrix(change: WeightChange) -> bool:
    """Whether a change is one of a weight matrix, and not of a normalization or of a bias alone."""
    bias_alone = change.bias is not None and change.dense is not None and not change.dense.any()
    return len(change.spec.shape) > 1 and not bias_alone


def change_vectors(change: WeightChange) -> Vectors:
    """What a change adds to a bias or to a normalization, by LyCORIS's names; empty where it does neither."""
    norm = len(change.spec.shape) == 1
    # PEFT adds a bias where the module has none; only beside a LoRA is there a name for that.
    name = "b_norm" if norm else "up_bias" if has_no_bias(change.spec.name) else "diff_b"
    vectors = {} if change.bias is None else {name: change.bias}
    return {"w_norm": change.matrix().flatten(), **vectors} if norm else vectors


def lora_with_vectors(pairs: Mapping[Spec, Pair], vectors: Mapping[Spec, Vectors]) -> AdapterSet:
    """A LoRA that holds these pairs; with vectors an imported adapter, for a trained LoRA has no place for them."""
    if not vectors:
        return lora_from_factors(pairs)
    layers = {spec: {"up": up.contiguous(), "down": down.contiguous()} for spec, (up, down) in pairs.items()}
    return create_imported({spec: {**layers.get(spec, {}), **vectors.get(spec, {})}
                            for spec in dict.fromkeys((*layers, *vectors))}).requires_grad_(False)   # fmt: skip


@torch.no_grad()
def lora_from_factors(pairs: Mapping[Spec, Pair]) -> AdapterSet:
    """A LoRA set that holds these pairs, each layer with the rank of its own."""
    ranks = {spec.name: len(down) for spec, (_, down) in pairs.items()}
    with torch.random.fork_rng(devices=[]):   # its start values are overwritten: the random state stays
        adapters = create_adapters("lora", {"rank": max((1, *ranks.values()))}, pairs, ranks)
    for adapter in adapters:
        assert isinstance(adapter, Lora)
        adapter.up.copy_(pairs[adapter.spec][0])
        adapter.down.copy_(pairs[adapter.spec][1])
    return adapters.requires_grad_(False)


@torch.no_grad()
def finished(adapters: AdapterSet) -> AdapterSet:
    """What a finished training saves: another kind where its own is meant for training alone (``saved_as``)."""
    kind = KINDS[adapters.kind]
    if kind.saved_as == Lora.kind:
        pairs = {adapter.spec: factors for adapter in adapters if (factors := adapter.factors()) is not None}
        return lora_from_factors({spec: _used_directions(pair) for spec, pair in pairs.items()})
    return _as_shira(adapters) if kind.saved_as == Shira.kind else adapters


def _used_directions(pair: Pair) -> Pair:
    """The pair without directions that were switched off in training."""
    up, down = pair
    used = up.any(0)
    return up[:, used], down[used]


def _as_shira(adapters: AdapterSet) -> AdapterSet:
    with torch.random.fork_rng(devices=[]):
        saved = create_adapters(Shira.kind, adapters.settings.to_dict(), adapters.specs)
    for new, old in zip(saved, adapters, strict=True):
        assert isinstance(new, Shira)
        assert isinstance(old, DynamicSparse)
        index, values = old.entries()
        new.index.copy_(index)
        new.values.copy_(values)
    return saved.requires_grad_(False)
