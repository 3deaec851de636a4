"""Rank and scale, apart because kinds of every family have them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from atelier.adapters.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSettings(Settings):
    """Settings of every kind that has a rank and a scale."""

    rank: int = setting(8, "Rank: a higher one learns more detail and makes a larger file.", low=1, high=1024)
    alpha: float = setting(0.0, "The update is scaled by alpha / rank. 0 means alpha = rank.", low=0)

    @property
    def scale(self) -> float:
        """alpha / rank, the factor on the update; alpha = 0 stands for the rank, so 1."""
        return (self.alpha or self.rank) / self.rank

    def with_rank(self, rank: int) -> Self:
        """The same settings for a module that has another rank: the scale stays."""
        return replace(self, rank=rank, alpha=self.alpha * rank / self.rank)
