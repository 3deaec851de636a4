"""Sparse adapters: a few entries of the weight change, the others never do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings, setting


class SparseAdapter(Adapter):
    """ΔW = values at ``index``, the flat positions of a matrix of :meth:`area` entries; 0 elsewhere.

    A kind says how many and which. The positions are drawn at random here; a kind that chooses them from the base
    model replaces them at the start. They are kept in the file: another torch draws other random numbers.
    """

    index: Tensor

    def __init__(self, spec: Spec, settings: Settings, count: int) -> None:
        super().__init__(spec, settings)
        self.values = nn.Parameter(torch.zeros(count))
        area = self.position_count(spec)
        self.register_buffer("index", _positions(area, count))

    @classmethod
    def position_count(cls, spec: Spec) -> int:
        """Number of positions there are to choose from."""
        return spec.rows * spec.columns

    def select_largest(self, score: Tensor) -> None:
        """Take the positions where ``score [rows, columns]`` is largest."""
        self.index.copy_(score.flatten().topk(len(self.values)).indices.sort().values)

    def scatter_values(self, values: Tensor) -> Tensor:
        """``values`` at their positions, ``[area]``."""
        return torch.zeros(self.position_count(self.spec), dtype=values.dtype, device=values.device).scatter(
            0, self.index.long(), values
        )

    def entries(self) -> tuple[Tensor, Tensor] | None:
        """Flat positions in W and their changes ``[count]`` each, where ΔW is nothing but these."""
        return None

    @property
    def reads_weight(self) -> bool:
        """False: positions and values are in the file."""
        return False

    def delta(self, weight: Tensor) -> Tensor:
        """The values at their positions, zero elsewhere, in the shape of ``weight``."""
        return self.scatter_values(self.values).reshape(weight.shape)


def _positions(area: int, count: int) -> Tensor:
    """Draw ``count`` of ``area`` positions without repetition, ascending."""
    if torch.get_default_device().type == "meta":   # only shapes are asked for, and `unique` has none there
        return torch.empty(count, dtype=torch.int)
    # In memory for the drawn alone: some layers have 30 million entries.
    drawn = torch.randint(area, (2 * count,)).unique() if 4 * count < area else torch.arange(area)
    return drawn[torch.randperm(len(drawn))[:count]].sort().values.int()


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseSettings(Settings):
    """How many entries a sparse adapter has."""

    rank: int = setting(4, "Train as many values as a LoRA of this rank has.", low=1, high=1024)

    def count(self, spec: Spec) -> int:
        """Number of entries in one module."""
        return min(self.rank * (spec.rows + spec.columns), spec.rows * spec.columns)
