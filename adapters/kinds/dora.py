"""DoRA: a low-rank update of the direction of every output row, and a free length for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.kinds.lora import RankSettings


class Dora(Adapter):
    """W + ΔW = diag((‖W‖ + lengthen) / ‖V‖) · V with V = W + scale · up @ down   (Liu et al. 2024, arXiv 2402.09353).

    Shapes: ``up [rows, rank]``, ``down [rank, columns]``, ``lengthen [rows]``; norms are those of W's rows.
    Parameters: rank · (rows + columns) + rows. Start: ``up`` and ``lengthen`` zero, so V = W and ΔW = 0 exactly.
    As in the paper (§4.3) the norm ‖V‖ is a constant to the gradient.
    Difference: the authors train the length m itself; it is kept as the difference ``lengthen`` = m − ‖W‖ here, so
    that a start of exactly zero needs no copy of ‖W‖, and weight decay pulls back to the base.
    ΔW holds W, so it is of full rank, and a Mix takes it from the original W as every other.
    """

    kind = "dora"
    title = "DoRA"
    settings = RankSettings

    def __init__(self, spec: Spec, settings: RankSettings) -> None:
        super().__init__(spec, settings)
        self.scale = settings.scale
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        self.lengthen = nn.Parameter(torch.zeros(spec.rows))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: RankSettings) -> int:
        """rank · (rows + columns) + rows."""
        return settings.rank * (spec.rows + spec.columns) + spec.rows

    def delta(self, weight: Tensor) -> Tensor:
        """Eq. 5 of the paper less W; ‖V‖ is detached, as its §4.3 has it."""
        before = weight.detach().flatten(1).to(self.up.dtype)
        after = before + self.scale * self.up @ self.down
        norms = after.detach().norm(dim=1)
        ratio = (before.norm(dim=1) + self.lengthen) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return (ratio[:, None] * after - before).reshape(weight.shape)
