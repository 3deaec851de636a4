"""SaRA: training wakes the weights that do nothing yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, BaseStatistics, Spec
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.sparse.sparse_adapter import SparseAdapter, SparseSettings

_SMALLEST = 1e-6   # singular values that count, as a share of the largest


@dataclass(frozen=True, kw_only=True, slots=True)
class SaraSettings(SparseSettings):
    """How many entries are trained, and how strongly their change is kept of low rank."""

    penalty: float = setting(0.0005, "Weight of the penalty on high rank (nuclear norm). 0 turns it off.", low=0)


class Sara(SparseAdapter):
    """ΔW = values at the entries where |W| is smallest   (SaRA, Hu et al. 2024, arXiv 2409.06633).

    Shapes: ``values``, ``index``, ``settled`` and ``kept``, all ``[count]``.
    Parameters: min(rank · (rows + columns), rows · columns). Start: ``values`` zero, so every weight keeps its sign.
    Weights near zero do little in the base, so there is room to learn without forgetting. Half way,
    :meth:`update_mask` settles the entries that have outgrown the threshold: they keep their value and train no more.
    The paper's nuclear-norm penalty keeps the change of low rank: after every update one layer, each in its turn, is
    moved against the gradient of ``penalty`` times the sum of its singular values, for as many layers as there are.
    Difference: a count of entries instead of a threshold, which is the largest |W| among them; and the authors' code
    writes |W| into the entries, which turns the sign of every negative one before the first step. The penalty is of the
    change, as weight decay apart from the gradients; the authors' is of the changed weights, and in their default
    optimizer it reaches none of the values that are trained.
    """

    kind = "sara"
    title = "SaRA"
    settings = SaraSettings
    settled: Tensor
    kept: Tensor

    def __init__(self, spec: Spec, settings: SaraSettings) -> None:
        super().__init__(spec, settings, settings.count(spec))
        self.penalty = settings.penalty
        self.register_buffer("settled", torch.zeros(len(self.values), dtype=torch.bool))
        self.register_buffer("kept", torch.zeros(len(self.values)))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: SaraSettings) -> int:
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

    @classmethod
    @torch.no_grad()
    def after_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Lower the nuclear norm of one layer's change."""
        adapter = list(adapters)[update.step % len(adapters)]
        assert isinstance(adapter, Sara)
        if adapter.penalty:
            adapter.values.sub_(adapter.rank_gradient(), alpha=update.lr * adapter.penalty * len(adapters))

    def rank_gradient(self) -> Tensor:
        """Gradient of the change's nuclear norm by its values ``[count]``; 0 where there is no change."""
        u, s, v = torch.linalg.svd(self.scatter_values(self.current()).reshape(self.spec.rows, -1), full_matrices=False)
        counts = s > _SMALLEST * s[0]
        return ((u * counts) @ v).flatten()[self.index.long()]

    def current(self) -> Tensor:
        """The values that count: an optimizer's momentum may still move those that have settled."""
        return torch.where(self.settled, self.kept, self.values)

    def entries(self) -> tuple[Tensor, Tensor]:
        """Flat positions in W and their changes."""
        return self.index, self.current()

    def delta(self, weight: Tensor) -> Tensor:
        """The entries' present values at their positions, zero elsewhere."""
        return self.scatter_values(self.current()).reshape(weight.shape)
