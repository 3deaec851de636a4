"""SpIEL: sparse entries that move to where the gradient asks for them."""

from __future__ import annotations

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, BaseStatistics, Spec
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.kinds.sparse.sparse_adapter import SparseAdapter, SparseSettings

PERIOD = 20      # updates between two exchanges
EXCHANGED = 0.2  # of the entries at the first exchange, fewer later on


class Spiel(SparseAdapter):
    """ΔW = values at entries that move while they are trained   (SpIEL, Ansell et al. 2024, arXiv 2401.16405).

    Shapes: ``values [count]``, ``index [count]``, the flat positions in W.
    Parameters: min(rank · (rows + columns), rows · columns). Start: the entries with the largest first gradient, all
    zero, so ΔW = 0. Every 20 updates the smallest values are dropped, 0.2 · (1 − progress) of all, and as many entries
    with the largest gradient join at zero. Needs more than about 200 updates; SHiRA's mask of the first gradient is the
    same without exchanges.
    Difference: the gradient that chooses is the last update's, not a sum over five, so that a run that resumes makes
    the same choice; and an entry that joins begins with the mean second moment of the others.
    """

    kind = "spiel"
    title = "SpIEL (moving sparse entries)"
    settings = SparseSettings
    recordable = False   # the gradient of all weights is noted before an exchange alone

    def __init__(self, spec: Spec, settings: SparseSettings) -> None:
        super().__init__(spec, settings, settings.count(spec))
        self.notes_gradient = True   # of the first update of a run that resumes, perhaps just before an exchange
        self.gradient: Tensor | None = None   # [rows · columns], of one update

    @classmethod
    def parameter_count(cls, spec: Spec, settings: SparseSettings) -> int:
        """min(rank · (rows + columns), rows · columns)."""
        return settings.count(spec)

    @classmethod
    def required_statistics(cls, settings: SparseSettings) -> str:   # noqa: ARG003 (the same for all)
        """``gradient``, which chooses the first entries."""
        return "gradient"

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Choose the entries with the largest gradient."""
        self.select_largest(statistics.gradient_matrix().abs())

    def entries(self) -> tuple[Tensor, Tensor]:
        """Flat positions in W and their changes."""
        return self.index, self.values

    def scatter_values(self, values: Tensor) -> Tensor:
        """``values`` at their positions, ``[area]``; before an exchange the gradient of all of them is noted."""
        dense = super().scatter_values(values)
        if self.notes_gradient and dense.requires_grad:
            dense.register_hook(self._note_gradient)
        return dense

    def _note_gradient(self, gradient: Tensor) -> None:
        self.gradient = gradient.clone() if self.gradient is None else self.gradient + gradient

    @classmethod
    @torch.no_grad()
    def after_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Exchange entries every 20 updates, and see to it that the gradient is noted before the next time."""
        for adapter in adapters:
            assert isinstance(adapter, Spiel)
            if update.step % PERIOD == 0 and adapter.gradient is not None:
                adapter.exchange(adapter.gradient, EXCHANGED * (1 - update.progress), update)
            adapter.gradient, adapter.notes_gradient = None, (update.step + 1) % PERIOD == 0

    def exchange(self, gradient: Tensor, share: float, update: OptimizerUpdate) -> None:
        """Drop the smallest values and let entries with the largest gradient join at zero."""
        count = min(int(share * len(self.values)), len(gradient) - len(self.values))
        score = gradient.abs().index_fill(0, self.index.long(), -1)
        weakest = self.values.abs().topk(count, largest=False).indices
        self.index[weakest] = score.topk(count).indices.int()
        chosen = torch.zeros_like(self.values, dtype=torch.bool).index_fill(0, weakest, value=True)
        self.values.masked_fill_(chosen, 0)
        update.forget(self.values, chosen)
