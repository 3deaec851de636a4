"""FlyLoRA: a fixed sparse random projection, and a trained way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class FlyloraSettings(RankSettings):
    """Number of the fixed projections and how much of the inputs each reads."""

    rank: int = setting(16, "Rank: number of fixed random projections.", low=1, high=1024)
    density: float = setting(0.25, "Share of a layer's inputs that each projection reads.", low=0.001, high=1)


class Flylora(Adapter):
    """ΔW = scale · up @ down, ``down`` sparse, random and fixed   (FlyLoRA, Zou et al. 2025, arXiv 2510.08396).

    Every row of ``down [rank, columns]`` has p = max(1, ⌊columns · density⌋) entries, kept as ``index`` and ``values``
    ``[rank, p]``; only ``up [rows, rank]`` is trained. Parameters: rank · rows. Start: ``up`` zero, so ΔW = 0. An exact
    LoRA of the same rank. Projections of two adapters hardly overlap, so their sum disturbs each of them less.
    Left out: the choice of a few projections for each token, which depends on the picture and could be neither merged
    nor exported; all of them act here (the paper's k = r).
    Difference: rows of ``down`` are as long as those of a LoRA's Kaiming start, so that one learning rate suits both.
    """

    kind = "flylora"
    title = "FlyLoRA"
    settings = FlyloraSettings
    index: Tensor
    values: Tensor

    def __init__(self, spec: Spec, settings: FlyloraSettings) -> None:
        super().__init__(spec, settings)
        self.scale = settings.scale
        count = max(1, int(spec.columns * settings.density))
        places = torch.rand(settings.rank, spec.columns).topk(count).indices.sort().values
        self.register_buffer("index", places.int())
        self.register_buffer("values", torch.randn(settings.rank, count) / (3 * count) ** 0.5)
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: FlyloraSettings) -> int:
        """rank · rows: the projections are fixed."""
        return settings.rank * spec.rows

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up`` with the scale, and the projections written out."""
        down = self.values.new_zeros(len(self.values), self.spec.columns)
        return self.up * self.scale, down.scatter(1, self.index.long(), self.values)
