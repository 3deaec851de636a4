"""Hydra: a parallel and a sequential low-rank branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings
from atelier.adapters.kinds.low_rank.weight_pair import WeightPairAdapter


class Hydra(WeightPairAdapter):
    """ΔW = scale · (up @ down + up_after @ down_after @ W)   (Kim et al. 2023, arXiv 2309.06922).

    Shapes: ``up, up_after [rows, rank]``, ``down [rank, columns]``, ``down_after [rank, rows]``: the second branch
    works on what the layer puts out. Parameters: rank · (rows + columns) + 2 · rank · rows.
    Start: both ``up`` zero, so ΔW = 0; both ``down`` Kaiming-uniform with a = √5.
    Difference: the authors' branches have biases, which no weight update can hold; the layer's own bias does not pass
    through the second branch for the same reason.
    """

    kind = "hydra"
    title = "Hydra"
    settings = RankSettings

    def __init__(self, spec: Spec, settings: RankSettings) -> None:
        super().__init__(spec, settings)
        self.scale = settings.scale
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        self.down_after = nn.Parameter(torch.empty(settings.rank, spec.rows))
        self.up_after = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        nn.init.kaiming_uniform_(self.down_after, a=5**0.5)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: RankSettings) -> int:
        """rank · (rows + columns) + 2 · rank · rows."""
        return settings.rank * (spec.rows + spec.columns) + 2 * settings.rank * spec.rows

    def pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """ΔW as a low-rank pair of rank 2·rank, given W."""
        through = self.down_after @ weight.detach().flatten(1).to(self.up.dtype)
        return torch.cat([self.up, self.up_after], 1) * self.scale, torch.cat([self.down, through])
