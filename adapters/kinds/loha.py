"""LoHa: the elementwise product of two low-rank updates, of a rank that is squared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.kinds.lora import RankSettings


class Loha(Adapter):
    """ΔW = scale · (up_1 @ down_1) ∘ (up_2 @ down_2)   (FedPara: Hyeon-Woo et al. 2022, arXiv 2108.06098, eq. 2).

    Shapes: ``up_1, up_2 [rows, rank]``, ``down_1, down_2 [rank, columns]``; a convolution is the matrix [out, in·k·k].
    Parameters: 2 · rank · (rows + columns). Start: ``up_2`` zero, so ΔW = 0; ``down_2`` as LoRA's ``down``; the first
    product has entries of size 1, so that training starts at LoRA's pace.
    An exact LoRA of rank rank²: every column of ``up_1`` times every column of ``up_2``, and the rows of both ``down``.
    Left out: LyCORIS's Tucker form for kernels, and its narrower first product.
    """

    kind = "loha"
    title = "LoHa"
    settings = RankSettings

    def __init__(self, spec: Spec, settings: RankSettings) -> None:
        super().__init__(spec, settings)
        rank = settings.rank
        self.scale = settings.scale
        self.up_1 = nn.Parameter(torch.randn(spec.rows, rank) * rank**-0.5)
        self.down_1 = nn.Parameter(torch.randn(rank, spec.columns))
        self.up_2 = nn.Parameter(torch.zeros(spec.rows, rank))
        self.down_2 = nn.Parameter(torch.empty(rank, spec.columns))
        nn.init.kaiming_uniform_(self.down_2, a=5**0.5)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: RankSettings) -> int:
        """2 · rank · (rows + columns)."""
        return 2 * settings.rank * (spec.rows + spec.columns)

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up [rows, rank²]``, ``down [rank², columns]``: all products of a column pair and of a row pair."""
        up = (self.up_1[:, :, None] * self.up_2[:, None]).flatten(1)
        down = (self.down_1[:, None] * self.down_2[None]).flatten(0, 1)
        return self.scale * up, down
