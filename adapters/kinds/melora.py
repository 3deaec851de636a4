"""MELoRA: several small LoRAs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.factorize import largest_divisor
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class MeloraSettings(RankSettings):
    """Settings of an ensemble of small LoRAs."""

    rank: int = setting(4, "Rank of each small LoRA. All together have blocks times this rank.", low=1, high=1024)
    blocks: int = setting(4, "Number of small LoRAs in a layer. More give a higher rank at the same size, but each "
                             "input reaches fewer outputs.", low=1, high=64)   # fmt: skip


class Melora(Adapter):
    """ΔW = scale · blockdiag(up_b) @ blockdiag(down_b)   (MELoRA, Ren et al. 2024, arXiv 2402.17263).

    Shapes: ``up [q, rows / q, rank]`` and ``down [q, rank, columns / q]``, q = the largest divisor of rows and features
    that is at most ``blocks``. Parameters: rank · (rows + columns). Start: ``up`` zero, so ΔW = 0; ``down``
    Kaiming-uniform with a = √5. An exact LoRA of rank q · rank at the size of one of rank ``rank``. Its price: every
    small LoRA reads one slice of the input channels and writes one of the outputs, and all else in ΔW is zero.
    Difference: the authors drop the channels that are left over where ``blocks`` does not divide a width; here there
    are fewer blocks then.
    """

    kind = "melora"
    title = "MELoRA"
    settings = MeloraSettings

    def __init__(self, spec: Spec, settings: MeloraSettings) -> None:
        super().__init__(spec, settings)
        self.scale = settings.scale
        blocks = largest_divisor(gcd(spec.rows, spec.features), settings.blocks)
        down = torch.empty(blocks, settings.rank, spec.columns // blocks)
        for block in down:
            nn.init.kaiming_uniform_(block, a=5**0.5)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(blocks, spec.rows // blocks, settings.rank))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: MeloraSettings) -> int:
        """rank · (rows + columns), however many blocks there are."""
        return settings.rank * (spec.rows + spec.columns)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The block-diagonal pair, zeros written out: ``[rows, q · rank]`` with the scale, ``[q · rank, columns]``."""
        return torch.block_diag(*self.up) * self.scale, torch.block_diag(*self.down)
