"""SALT: the largest singular values of W are shifted, and a low-rank update acts between the other directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings
from atelier.adapters.kinds.low_rank.weight_pair import WeightPairAdapter
from atelier.adapters.kinds.svdiff import CachedSvd


@dataclass(frozen=True, kw_only=True, slots=True)
class SaltSettings(RankSettings):
    """How many singular values are shifted, and the rank of the part beside them."""

    rank: int = setting(4, "Rank of the update between the smaller singular directions.", low=1, high=1024)
    top: int = setting(64, "Number of largest singular values that are shifted, at most half of all.", low=1, high=4096)

    def shifted(self, spec: Spec) -> int:
        """How many singular values are shifted in one module."""
        return min(self.top, min(spec.rows, spec.columns) // 2)


class Salt(WeightPairAdapter):
    """ΔW = U_k diag(shift) V_k + scale · (1 − U_k U_kᵀ) up @ down (1 − V_kᵀ V_k)   (SALT, arXiv 2503.16055).

    With W = U diag(S) V, U_k and V_k are its k = min(top, min(rows, columns) // 2) largest singular directions.
    Shapes: ``shift [k]``, ``up [rows, rank]``, ``down [rank, columns]``.
    Parameters: min(top, min(rows, columns) // 2) + rank · (rows + columns).
    Start: ``shift`` and ``up`` zero, so ΔW = 0; ``down`` Kaiming-uniform with a = √5. Of rank k + rank; as SVDiff it
    belongs to its base model.
    Difference: the authors (Elsayed et al. 2025) write the low-rank part in the coordinates of the other singular
    directions, whose signs another rounding of W turns; a projection has no signs. They scale and shift each value, of
    which a shift alone can do as much; and their code cuts negative entries of the whole core off, the low-rank part's
    too, whose rank is then lost.
    """

    kind = "salt"
    title = "SALT"
    settings = SaltSettings

    def __init__(self, spec: Spec, settings: SaltSettings) -> None:
        super().__init__(spec, settings)
        self.scale, self.svd = settings.scale, CachedSvd()
        self.shift = nn.Parameter(torch.zeros(settings.shifted(spec)))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: SaltSettings) -> int:
        """k + rank · (rows + columns)."""
        return settings.shifted(spec) + settings.rank * (spec.rows + spec.columns)

    def pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """ΔW as a pair of rank k + rank, from the SVD of ``weight``, which is kept."""
        u, _, v = self.svd(weight, self.shift.dtype)
        u, v = u[:, : len(self.shift)], v[: len(self.shift)]
        up, down = self.up - u @ (u.T @ self.up), self.down - (self.down @ v.T) @ v
        return torch.cat([u * self.shift, self.scale * up], 1), torch.cat([v, down])
