"""Dynamic subset tuning: all weights are trained, and after every update only the largest changes stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.kinds.sparse.sparse_adapter import SparseSettings

WARM_UP = 0.1   # share of the updates before the first cut: Adam's first steps are equally long for all


class DynamicSparse(Adapter):
    """ΔW = change, of which only the largest entries stay   (dynamic subset tuning, 2024, arXiv 2411.08610).

    Shapes: ``change [rows, columns]``. Parameters: rows · columns. Start: zero, so ΔW = 0. After every update, all but
    the min(rank · (rows + columns), rows · columns) largest |change| of a layer go back to zero; what the optimizer
    remembers of them stays, so they can return. A finished training is saved as SHiRA, which holds only those that are
    left. Needs the memory of training all weights; SpIEL finds its entries with less.
    Our own reading of the abstract, for no code is public: ranking by |change|, the layer as the group that is counted
    in, and that the first tenth of the updates cuts nothing.
    """

    kind = "dynamic-sparse"
    title = "Dynamic subset tuning"
    settings = SparseSettings
    saved_as = "shira"

    def __init__(self, spec: Spec, settings: SparseSettings) -> None:
        super().__init__(spec, settings)
        self.count = settings.count(spec)
        self.change = nn.Parameter(torch.zeros(spec.rows, spec.columns))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: SparseSettings) -> int:   # noqa: ARG003 (all are trained)
        """rows · columns."""
        return spec.rows * spec.columns

    @property
    def reads_weight(self) -> bool:
        """False: all of the change is here."""
        return False

    def entries(self) -> tuple[Tensor, Tensor]:
        """Flat positions of the largest changes, ascending, and these."""
        flat = self.change.flatten()
        index = flat.abs().topk(self.count).indices.sort().values
        return index.int(), flat[index]

    def delta(self, weight: Tensor) -> Tensor:
        """The change in the shape of ``weight``."""
        return self.change.reshape(weight.shape)

    @classmethod
    @torch.no_grad()
    def after_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Put all but the largest changes back."""
        for adapter in adapters if update.progress > WARM_UP else ():
            assert isinstance(adapter, DynamicSparse)
            index, values = adapter.entries()
            adapter.change.zero_().view(-1)[index.long()] = values
