"""Hydra: a parallel and a sequential low-rank branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings
from atelier.adapters.kinds.low_rank.weight_pair import WeightPairAdapter


@dataclass(frozen=True, kw_only=True, slots=True)
class HydraSettings(RankSettings):
    """Rank and scale, and whether biases are trained as well."""

    bias: bool = setting(False, "Also train the biases of layers that have one, as the authors do.")


class Hydra(WeightPairAdapter):
    """ΔW = scale · (up @ down + up_after @ down_after @ W)   (Kim et al. 2023, arXiv 2309.06922).

    Shapes: ``up, up_after [rows, rank]``, ``down [rank, columns]``, ``down_after [rank, rows]``: the second branch
    works on what the layer puts out. Parameters: rank · (rows + columns) + 2 · rank · rows + rows · bias.
    Start: both ``up`` zero, so ΔW = 0; both ``down`` Kaiming-uniform with a = √5. With ``bias``, a layer that has a
    bias gets shift + scale · up_after @ down_after @ bias in addition, ``shift [rows]`` zero at the start: all biases
    of the authors' two branches come to this, and the layer's own passes through the second.
    """

    kind = "hydra"
    title = "Hydra"
    settings = HydraSettings

    def __init__(self, spec: Spec, settings: HydraSettings) -> None:
        super().__init__(spec, settings)
        self.scale = settings.scale
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        self.down_after = nn.Parameter(torch.empty(settings.rank, spec.rows))
        self.up_after = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        nn.init.kaiming_uniform_(self.down_after, a=5**0.5)
        self.shift = nn.Parameter(torch.zeros(spec.rows)) if settings.bias else None

    @classmethod
    def parameter_count(cls, spec: Spec, settings: HydraSettings) -> int:
        """rank · (rows + columns) + 2 · rank · rows, and the rows' shifts."""
        return settings.rank * (spec.rows + spec.columns) + (2 * settings.rank + settings.bias) * spec.rows

    @property
    def adds_bias(self) -> bool:
        """Whether biases are trained."""
        return self.shift is not None

    @property
    def reads_bias(self) -> bool:
        """Whether biases are trained: the layer's own passes through the second branch."""
        return self.shift is not None

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """What is added to ``bias [rows]``; None where the layer has none or none is trained."""
        if self.shift is None or bias is None:
            return None
        return self.shift + self.scale * self.up_after @ (self.down_after @ bias.detach().to(self.shift.dtype))

    def pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """ΔW as a low-rank pair of rank 2·rank, given W."""
        through = self.down_after @ weight.detach().flatten(1).to(self.up.dtype)
        return torch.cat([self.up, self.up_after], 1) * self.scale, torch.cat([self.down, through])
