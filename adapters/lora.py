"""LoRA: a low-rank update, the kind every other tool reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Adapter, Spec
from .settings import Settings, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings(Settings):
    """Settings of one LoRA."""

    rank: int = setting(8, "Inner size: larger holds more detail and makes a larger file.", low=1, high=1024)
    alpha: float = setting(0.0, "Scale of the update is alpha / rank; 0 means alpha = rank.", low=0)


class Lora(Adapter):
    """ΔW = (alpha / rank) · up @ down   (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    Shapes: ``up [rows, rank]``, ``down [rank, columns]``; a 3×3 convolution is the matrix [out, in·9].
    Parameters: rank · (rows + columns). Start: ``down`` Kaiming-uniform with a = √5 as in the authors' code,
    ``up`` zero, so ΔW = 0 exactly.
    """

    kind = "lora"
    title = "LoRA"
    settings = LoraSettings

    def __init__(self, spec: Spec, settings: LoraSettings) -> None:
        super().__init__(spec, settings)
        self.scale = (settings.alpha or settings.rank) / settings.rank
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: LoraSettings) -> int:
        return settings.rank * (spec.rows + spec.columns)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.up * self.scale, self.down
