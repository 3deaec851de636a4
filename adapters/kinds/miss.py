"""MiSS: one column of changes for every r-th input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class MissSettings(Settings):
    """Settings of a shard-sharing adapter."""

    rank: int = setting(16, "Number of columns that are trained. All others repeat them.", low=1, high=1024)


class Miss(Adapter):
    """ΔW[:, c] = up[:, c mod r]   (MiSS, Kang & Yin 2024, arXiv 2409.15371, once called Bone).

    Shapes: ``up [rows, r]``, r = min(rank, columns); a convolution is the matrix [out, in·k·k].
    Parameters: min(rank, columns) · rows. Start: ``up`` zero, so ΔW = 0.
    An exact LoRA of rank r whose ``down`` is fixed: it sums every r-th input.
    Left out: Bone's own variant, which multiplies blocks of W.
    """

    kind = "miss"
    title = "MiSS"
    settings = MissSettings

    def __init__(self, spec: Spec, settings: MissSettings) -> None:
        super().__init__(spec, settings)
        self.up = nn.Parameter(torch.zeros(spec.rows, min(settings.rank, spec.columns)))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: MissSettings) -> int:
        """min(rank, columns) · rows."""
        return min(settings.rank, spec.columns) * spec.rows

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up [rows, r]`` and the fixed 0/1 matrix ``[r, columns]`` that sums every r-th input."""
        rank = self.up.shape[1]
        one = torch.eye(rank, dtype=self.up.dtype, device=self.up.device)
        return self.up, one.repeat(1, -(-self.spec.columns // rank))[:, : self.spec.columns]
