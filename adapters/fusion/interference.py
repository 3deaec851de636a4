"""How much adapters get in one another's way, told from their weights before anything is drawn.

Two updates meet in a layer where their rows (what they look at) and columns (what they write) span the same
directions. Where they meet, they add up or push against each other; the cosine of both updates says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.low_rank import Pair
from atelier.adapters.formats.module_names import canonical_name
from atelier.adapters.fusion.pairwise import Models, add_factors, exact_changes, row_space

CANCELS, REINFORCES = 0.1, 0.3   # shares of all updates that a sum loses, or gains
OVERLAPS = 0.15                  # mean overlap beyond chance


@dataclass(frozen=True, slots=True)
class LayerOverlap:
    """Two adapters in one layer."""

    layer: str
    pair: tuple[int, int]   # places in the Mix
    rows: float             # overlap of row spaces, 0 … 1: mean squared cosine of the principal angles
    columns: float          # the same of column spaces
    chance: float           # √(rows · columns) of two random updates of these ranks
    cosine: float           # of the two updates at their strengths, −1 … 1
    weight: float           # ‖Δ₁‖·‖Δ₂‖: how much it matters


@dataclass(frozen=True, slots=True)
class Interference:
    """What a Mix does to itself."""

    meetings: tuple[LayerOverlap, ...]
    cancelled: dict[str, float]   # by layer: 1 − ‖ΣΔ‖² / Σ‖Δ‖²; above 0 they cancel, below they reinforce
    lost: float                   # the same of all layers together

    def verdict(self) -> str:
        """What matters most: the updates cancel, or reinforce each other, or only overlap, or none of these (empty)."""
        if self.lost > CANCELS:
            return "cancel"
        if self.lost < -REINFORCES:
            return "reinforce"
        pairs = {meeting.pair for meeting in self.meetings}
        return "overlap" if max(map(self.overlap, pairs), default=0.0) > OVERLAPS else ""

    def overlap(self, pair: tuple[int, int]) -> float:
        """Mean overlap of two adapters' rows and columns beyond chance, over the layers as they matter, 0 … 1."""
        own = [meeting for meeting in self.meetings if meeting.pair == pair]
        whole = sum(meeting.weight for meeting in own)
        return sum(meeting.weight * excess_overlap(meeting) for meeting in own) / whole if whole else 0.0


def excess_overlap(meeting: LayerOverlap) -> float:
    """Overlap of one meeting, rows times columns, root taken, above what chance gives."""
    both = (meeting.rows * meeting.columns) ** 0.5
    return max(0.0, (both - meeting.chance) / (1 - meeting.chance)) if meeting.chance < 1 else 0.0


@torch.no_grad()
def measure_interference(models: Models, mix: Mix) -> Interference:
    """Compare every two adapters of a Mix in every layer that both change.

    Raises:
        MountError: an adapter does not fit the base model.
    """
    return _compare([exact_changes(models, Mix((part,)))[0] if part[1] else {} for part in mix.parts])


@torch.no_grad()
def interference_of_factors(mix: Mix) -> Interference | None:
    """The same from the files alone: no base model is loaded and no ΔW is formed.

    None where an adapter has no exact factors: its update is dense, or depends on the base model's weights.
    """
    found = [_own_factors(*part) if part[1] else {} for part in mix.parts]
    return None if None in found else _compare([own for own in found if own is not None])


def _own_factors(adapters: AdapterSet, strength: float) -> dict[Spec, Pair] | None:
    """Factors by layer, under shapes that are theirs: a file may leave a side of a layer's open."""
    pairs: dict[Spec, Pair] = {}
    for layer in adapters:
        if (pair := layer.factors()) is None:
            return None
        up, down = pair[0].cpu().float() * strength, pair[1].cpu().float()   # an idle adapter of a card lies here
        spec = Spec(canonical_name(layer.spec.name), (len(up), down.shape[1]))
        pairs[spec] = add_factors(pairs[spec], (up, down)) if spec in pairs else (up, down)
    return pairs


def _compare(found: Sequence[Mapping[Spec, Pair]]) -> Interference:
    specs = list(dict.fromkeys(spec for own in found for spec in own))
    meetings: list[LayerOverlap] = []
    cancelled: dict[str, float] = {}
    apart = together = 0.0
    for spec in specs:
        pairs = {i: own[spec] for i, own in enumerate(found) if spec in own and len(own[spec][1])}
        products = {(i, j): _product(pairs[i], pairs[j]) for i in pairs for j in pairs if i <= j}
        alone = sum(products[i, i] for i in pairs)
        crossed = 2 * sum(value for (i, j), value in products.items() if i < j)
        apart, together = apart + alone, together + alone + crossed
        if len(pairs) > 1 and alone:
            cancelled[spec.name] = -crossed / alone
            meetings += _meetings(spec, pairs, products)
    return Interference(tuple(meetings), cancelled, 1 - together / apart if apart else 0.0)


def _meetings(
    spec: Spec, pairs: Mapping[int, Pair], products: Mapping[tuple[int, int], float]
) -> Sequence[LayerOverlap]:
    rows = {i: row_space(pair) for i, pair in pairs.items()}
    columns = {i: row_space((pair[1].T, pair[0].T)) for i, pair in pairs.items()}
    meetings = []
    for i, j in combinations(pairs, 2):
        weight = (products[i, i] * products[j, j]) ** 0.5
        if weight:
            chance = max(rows[i].shape[1], rows[j].shape[1]) / (spec.columns * spec.rows) ** 0.5
            shared_rows, shared_columns = _overlap(rows[i], rows[j]), _overlap(columns[i], columns[j])
            meetings.append(LayerOverlap(spec.name, (i, j), shared_rows, shared_columns, min(1.0, chance),
                                         products[i, j] / weight, weight))   # fmt: skip
    return meetings


def _product(one: Pair, two: Pair) -> float:
    """⟨Δ₁, Δ₂⟩ of ``up @ down`` each, without forming either."""
    return ((one[0].T @ two[0]) * (one[1] @ two[1].T)).sum().item()


def _overlap(one: Tensor, two: Tensor) -> float:
    """Mean squared cosine of the principal angles between the columns' spans, ``[n, k₁]`` and ``[n, k₂]``."""
    least = min(one.shape[1], two.shape[1])
    return (one.T @ two).square().sum().item() / least if least else 0.0
