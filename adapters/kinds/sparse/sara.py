"""SaRA: training wakes the weights that do nothing yet."""

from __future__ import annotations

import torch
from torch import Tensor

from atelier.adapters.core.base import BaseStatistics, Spec
from atelier.adapters.kinds.sparse.sparse_adapter import SparseAdapter, SparseSettings


class Sara(SparseAdapter):
    """ΔW = values at the entries where |W| is smallest   (SaRA, Hu et al. 2024, arXiv 2409.06633).

    Shapes: ``values``, ``index``, ``settled`` and ``kept``, all ``[count]``.
    Parameters: min(rank · (rows + columns), rows · columns). Start: ``values`` zero, so every weight keeps its sign.
    Weights near zero do little in the base, so there is room to learn without forgetting. Half way,
    :meth:`update_mask` settles the entries that have outgrown the threshold: they keep their value and train no more.
    Left out: the paper's nuclear-norm penalty, one SVD of every layer in every step.
    Difference: a count of entries instead of a threshold, which is the largest |W| among them; and the authors' code
    writes |W| into the entries, which turns the sign of every negative one before the first step.
    """

    kind = "sara"
    title = "SaRA"
    settings = SparseSettings
    settled: Tensor
    kept: Tensor

    def __init__(self, spec: Spec, settings: SparseSettings) -> None:
        super().__init__(spec, settings, settings.count(spec))
        self.register_buffer("settled", torch.zeros(len(self.values), dtype=torch.bool))
        self.register_buffer("kept", torch.zeros(len(self.values)))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: SparseSettings) -> int:
        """min(rank · (rows + columns), rows · columns)."""
        return settings.count(spec)

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Choose the entries where |W| is smallest."""
        self.select_largest(-statistics.matrix().abs())

    @torch.no_grad()
    def update_mask(self, weight: Tensor) -> None:
        """Train on only with the entries whose changed weight is still below the threshold; ΔW stays as it is."""
        before = weight.detach().flatten()[self.index.long()].to(self.values.dtype)
        self.kept.copy_(self.current())
        self.settled |= (before + self.kept).abs() > before.abs().max()

    def current(self) -> Tensor:
        """The values that count: an optimizer's momentum may still move those that have settled."""
        return torch.where(self.settled, self.kept, self.values)

    def entries(self) -> tuple[Tensor, Tensor]:
        """Flat positions in W and their changes."""
        return self.index, self.current()

    def delta(self, weight: Tensor) -> Tensor:
        """The entries' present values at their positions, zero elsewhere."""
        return self.scatter_values(self.current()).reshape(weight.shape)
