"""Comp-LoRA: a LoRA that leaves the strongest directions of W alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, BaseStatistics, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CompLoraSettings(RankSettings):
    """Settings of a LoRA in the complement of W's main directions."""

    kept: int = setting(16, "Number of the weight's largest singular directions that stay as they are, at most half of "
                            "all. More change the base model less, and learn less.", low=1, high=1024)   # fmt: skip

    def directions(self, spec: Spec) -> int:
        """How many directions stay in one module."""
        return min(self.kept, min(spec.rows, spec.columns) // 2)


class CompLora(Adapter):
    """ΔW = scale · (1 − U_k U_kᵀ) up @ down (1 − V_kᵀ V_k)   (Comp-LoRA, 2025, arXiv 2501.15040).

    U_k ``outputs [rows, k]`` and V_k ``inputs [k, columns]`` are the k = min(kept, min(rows, columns) // 2) largest
    singular directions of W, so these stay exact singular directions of W + ΔW. Shapes: ``up [rows, rank]``,
    ``down [rank, columns]``. Parameters: rank · (rows + columns). Start: ``up`` zero, so ΔW = 0; ``down``
    Kaiming-uniform with a = √5. A finished training is saved as the plain LoRA that it is, without the directions.

    Our own reading of the abstract: which sides are projected, and that it is a constraint all the time, is not told
    there, and no code is public.
    """

    kind = "comp-lora"
    title = "Comp-LoRA"
    settings = CompLoraSettings
    saved_as = "lora"
    outputs: Tensor
    inputs: Tensor

    def __init__(self, spec: Spec, settings: CompLoraSettings) -> None:
        super().__init__(spec, settings)
        self.scale, kept = settings.scale, settings.directions(spec)
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.register_buffer("outputs", torch.zeros(spec.rows, kept))
        self.register_buffer("inputs", torch.zeros(kept, spec.columns))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: CompLoraSettings) -> int:
        """rank · (rows + columns)."""
        return settings.rank * (spec.rows + spec.columns)

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Note the largest singular directions of W."""
        u, _, v = torch.linalg.svd(statistics.matrix(), full_matrices=False)
        self.outputs.copy_(u[:, : self.outputs.shape[1]])
        self.inputs.copy_(v[: len(self.inputs)])

    def factors(self) -> tuple[Tensor, Tensor]:
        """Both factors without what they have of W's main directions: ``[rows, rank]`` with the scale, ``down``."""
        up = self.up - self.outputs @ (self.outputs.T @ self.up)
        return up * self.scale, self.down - (self.down @ self.inputs.T) @ self.inputs
