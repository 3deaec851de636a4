"""LoRA-XS: a small square matrix between two fixed bases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, AdapterSet, BaseStatistics, Spec
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraXsSettings(RankSettings):
    """Settings of a LoRA-XS: the trained square's side and where the fixed bases come from."""

    rank: int = setting(32, "Side of the square matrix that is trained.", low=1, high=1024)
    start: str = setting("weight", "Source of the fixed bases: the weight's largest singular directions, or those of "
                                   "the first gradient (LoRA-SB).", choices=("weight", "gradient"))


class LoraXs(Adapter):
    """ΔW = scale · left · core · right   (LoRA-XS, Bałazy et al. 2024, arXiv 2405.17604).

    ``core [r, r]`` is trained, r = min(rank, rows, columns). ``left [rows, r]`` and ``right [r, columns]`` are fixed:
    U·S and V of W, or U and V of the first gradient's sign (LoRA-SB, Ponkshe et al. 2024, arXiv 2411.19557).
    Parameters: min(rank, rows, columns)**2. Start: ``core`` zero, so ΔW = 0. An exact LoRA of rank r.
    LoRA-SB's bases are those of the first step of full training with Adam, −lr · sign(gradient), and the first update
    of a training is replaced by the best of rank r of this step, diag(Σ) between the bases; so ΔW is 0 before it.
    Difference: the authors' training begins behind that step.
    The file holds both bases: nearly equal singular values have other directions once W is rounded.
    """

    kind = "lora-xs"
    title = "LoRA-XS"
    settings = LoraXsSettings
    left: Tensor
    right: Tensor
    first_step: Tensor

    def __init__(self, spec: Spec, settings: LoraXsSettings) -> None:
        super().__init__(spec, settings)
        rank = min(settings.rank, spec.rows, spec.columns)
        self.scale, self.start_method = settings.scale, settings.start
        self.core = nn.Parameter(torch.zeros(rank, rank))
        self.register_buffer("left", torch.zeros(spec.rows, rank))
        self.register_buffer("right", torch.zeros(rank, spec.columns))
        self.register_buffer("first_step", torch.zeros(rank), persistent=False)   # Σ of −sign(gradient)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: LoraXsSettings) -> int:
        """min(rank, rows, columns)²."""
        return min(settings.rank, spec.rows, spec.columns) ** 2

    @classmethod
    def required_statistics(cls, settings: LoraXsSettings) -> str:
        """``gradient`` where LoRA-SB asks for it, else empty."""
        return "gradient" if settings.start == "gradient" else ""

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Take the fixed bases from the SVD of W or of the first gradient."""
        matrix = -statistics.gradient_matrix().sign() if self.start_method == "gradient" else statistics.matrix()
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        rank = len(self.core)
        self.left.copy_(u[:, :rank] if self.start_method == "gradient" else u[:, :rank] * s[:rank])
        self.right.copy_(v[:rank])
        self.first_step.copy_(s[:rank])

    @classmethod
    @torch.no_grad()
    def after_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Put the first step of full training in the place of a LoRA-SB's first update."""
        for adapter in adapters if update.step == 1 else ():
            assert isinstance(adapter, LoraXs)
            if adapter.start_method == "gradient":
                adapter.core.copy_(torch.diag(adapter.first_step * (update.lr / adapter.scale)))
                update.forget(adapter.core, torch.ones_like(adapter.core, dtype=torch.bool))

    def factors(self) -> tuple[Tensor, Tensor]:
        """``scale · left @ core [rows, r]`` and ``right [r, columns]``."""
        return self.scale * self.left @ self.core, self.right
