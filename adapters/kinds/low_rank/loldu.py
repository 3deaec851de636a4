"""LoLDU: the first pivots of W's LDU decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, BaseStatistics, Spec
from atelier.adapters.core.settings import Settings, setting

LEAST_PIVOT = 1e-3   # of the largest


@dataclass(frozen=True, kw_only=True, slots=True)
class LolduSettings(Settings):
    """Settings of an LDU adapter."""

    rank: int = setting(32, "Number of pivots that are trained.", low=1, high=4096)


class Loldu(Adapter):
    """ΔW = left · diag(gain · pivots − first) · right, with W = P L D U   (LoLDU, Shi et al. 2024, arXiv 2410.13618).

    ``left [rows, r]`` is P L and ``right [r, columns]`` is U, cut to the first r pivots, r = min(rank, rows, columns).
    Parameters: min(rank, rows, columns) + 1. Start: ``pivots`` = ``first`` = D and ``gain`` = 1, so ΔW = 0.
    An exact LoRA of rank r.
    The first pivots belong to rows, not to the largest directions; which rows is up to the pivoting.
    Difference: a pivot near 0 would make its row of U explode, so it is left in the row and 1 stands in D; the file
    holds left and right, for a rounded W can be pivoted in another order.
    """

    kind = "loldu"
    title = "LoLDU"
    settings = LolduSettings
    first: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, spec: Spec, settings: LolduSettings) -> None:
        super().__init__(spec, settings)
        rank = self.parameter_count(spec, settings) - 1
        self.pivots, self.gain = nn.Parameter(torch.zeros(rank)), nn.Parameter(torch.ones(()))
        self.register_buffer("first", torch.zeros(rank))
        self.register_buffer("left", torch.zeros(spec.rows, rank))
        self.register_buffer("right", torch.zeros(rank, spec.columns))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: LolduSettings) -> int:
        """min(rank, rows, columns) pivots and one gain."""
        return min(settings.rank, spec.rows, spec.columns) + 1

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Factorize W = P L D U and keep the first pivots with their columns of L and rows of U."""
        rank = len(self.first)
        swaps, lower, upper = torch.linalg.lu(statistics.matrix())
        pivots = upper.diagonal().clone()
        pivots[pivots.abs() < LEAST_PIVOT * pivots.abs().max()] = 1
        self.first.copy_(pivots[:rank])
        self.pivots.copy_(pivots[:rank])
        self.left.copy_((swaps @ lower)[:, :rank])
        self.right.copy_(upper[:rank] / pivots[:rank, None])

    def factors(self) -> tuple[Tensor, Tensor]:
        """``left · (gain · pivots − first)`` and ``right``: zero before training."""
        return self.left * (self.gain * self.pivots - self.first), self.right
