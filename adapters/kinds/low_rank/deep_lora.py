"""Deep LoRA: three small square factors between two fixed bases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, BaseStatistics, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings

START = 0.125   # a power of two, so that the product of three is exact in every precision


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLoraSettings(RankSettings):
    """Side of the trained matrices, and where the fixed bases come from."""

    rank: int = setting(16, "Side of the three square matrices that are trained.", low=1, high=1024)
    start: str = setting("gradient", "Source of the fixed bases: the largest directions of the first gradient, or of "
                                     "the weight.", choices=("gradient", "weight"))   # fmt: skip


class DeepLora(Adapter):
    """ΔW = scale · left · (W₃ W₂ W₁ − ε³) · right   (Deep LoRA, Yaras et al. 2024, arXiv 2406.04112).

    ``cores [3, r, r]`` are trained, r = min(rank, rows, columns); ``left [rows, r]`` and ``right [r, columns]`` are
    fixed: the largest singular directions of the first gradient, or of W.
    Parameters: 3 · min(rank, rows, columns)**2. Start: each core ε · 1 with ε = 1/8, so the difference is exactly 0.
    An exact LoRA of rank r. The paper's claim, for few samples: products of three that start small move few directions,
    so that the rank in use settles below r. In a small regression we saw no less of the others than with a LoRA.
    Difference: the paper's ε is 0.001, where gradients of the cores, of size ε², fall below what Adam can tell from
    zero; and it can train the bases as well, slowly. What belongs to the start is taken away, not left in the base.
    """

    kind = "deep-lora"
    title = "Deep LoRA"
    settings = DeepLoraSettings
    left: Tensor
    right: Tensor

    def __init__(self, spec: Spec, settings: DeepLoraSettings) -> None:
        super().__init__(spec, settings)
        rank = min(settings.rank, spec.rows, spec.columns)
        self.scale, self.start_method = settings.scale, settings.start
        self.cores = nn.Parameter(START * torch.eye(rank).repeat(3, 1, 1))
        self.register_buffer("left", torch.zeros(spec.rows, rank))
        self.register_buffer("right", torch.zeros(rank, spec.columns))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: DeepLoraSettings) -> int:
        """3 · min(rank, rows, columns)²."""
        return 3 * min(settings.rank, spec.rows, spec.columns) ** 2

    @classmethod
    def required_statistics(cls, settings: DeepLoraSettings) -> str:
        """``gradient`` where the bases follow it, else empty."""
        return "gradient" if settings.start == "gradient" else ""

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Take the fixed bases from the SVD of the first gradient, or of W."""
        matrix = statistics.gradient_matrix() if self.start_method == "gradient" else statistics.matrix()
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        rank = self.cores.shape[1]
        self.left.copy_(u[:, :rank])
        self.right.copy_(v[:rank])

    def factors(self) -> tuple[Tensor, Tensor]:
        """``scale · left @ (W₃ W₂ W₁ − ε³) [rows, r]`` and ``right [r, columns]``."""
        first, second, third = self.cores
        start = START**3 * torch.eye(len(first), dtype=first.dtype, device=first.device)
        return self.scale * self.left @ (third @ second @ first - start), self.right
