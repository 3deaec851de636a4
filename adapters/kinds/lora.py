"""LoRA: a low-rank update, the kind every other tool reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, BaseStatistics, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings(RankSettings):
    """Settings of a LoRA: rank and scale, how it starts, and how ranks are spread over layers."""

    stabilized: bool = setting(False, "Scale by alpha / √rank instead (rsLoRA), which is more stable at high ranks.")
    start: str = setting("random", "Initialization: 'inputs' (EVA) is a good choice and cheap; 'weight' is PiSSA, "
                                   "'gradient' is LoRA-GA.", choices=("random", "inputs", "weight", "gradient"))
    budget: int = setting(0, "Total number of parameters, given to the layers where they help most, up to twice the "
                             "rank. 0 gives every layer the same rank.", low=0)

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / √rank when stabilized (rsLoRA); alpha = 0 stands for the rank."""
        return (self.alpha or self.rank) / (self.rank**0.5 if self.stabilized else self.rank)

    def with_rank(self, rank: int) -> Self:
        """The same settings for a module that has another rank: the scale stays."""
        if not self.stabilized:
            return replace(self, rank=rank, alpha=self.alpha * rank / self.rank)
        return replace(self, rank=rank, alpha=(self.alpha or self.rank) * (rank / self.rank) ** 0.5)


class Lora(Adapter):
    """ΔW = scale · up @ down   (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    Shapes: ``up [rows, rank]``, ``down [rank, columns]``; a 3×3 convolution is the matrix [out, in·9].
    Scale: alpha / rank, or alpha / √rank with ``stabilized`` (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
    Parameters: rank · (rows + columns). Start: ``up`` zero, so ΔW = 0 exactly, and ``down``

    - ``random``: Kaiming-uniform with a = √5, as in the authors' code;
    - ``inputs``: where the inputs vary most (EVA, Paischer et al. 2024, arXiv 2410.07170), of the same size.

    Two starts have a first pair that is not zero: ``weight``, the top of W's SVD (PiSSA, Meng et al. 2024, arXiv
    2404.02948), and ``gradient``, ``up₀`` and ``down₀`` from two disjoint halves of the first gradient's top singular
    vectors (LoRA-GA, Wang et al. 2024, arXiv 2407.05000), of the size of ``random``'s ``down``. The authors subtract
    the first product from the base; here the base stays as it is, so that adapters can be mounted together, and
    ΔW = scale · ((up₀ + up) @ (down₀ + down) − up₀ @ down₀) = scale · [up₀, up] @ [down; down₀ + down],
    which is LoRA of rank 2·rank, again 0 exactly while ``up`` and ``down`` are.

    With a ``budget`` every layer gets a rank of its own (``rank_budget.py``), by the share of its inputs' variance that
    each direction explains (EVA), or by Σ|W·gradient| where the start follows the gradient.
    """

    kind = "lora"
    title = "LoRA"
    settings = LoraSettings
    first_up: Tensor
    first_down: Tensor

    def __init__(self, spec: Spec, settings: LoraSettings) -> None:
        super().__init__(spec, settings)
        self.scale, self.start_method = settings.scale, settings.start
        down, up = torch.empty(settings.rank, spec.columns), torch.zeros(spec.rows, settings.rank)
        nn.init.kaiming_uniform_(down, a=5**0.5)
        self.has_first = settings.start in ("weight", "gradient")
        if self.has_first:
            self.register_buffer("first_down", down)
            self.register_buffer("first_up", up.clone())
            down = torch.zeros_like(down)
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: LoraSettings) -> int:
        """rank · (rows + columns)."""
        return settings.rank * (spec.rows + spec.columns)

    @classmethod
    def required_statistics(cls, settings: LoraSettings) -> str:
        """``inputs`` or ``gradient`` where the start or the budget needs them, else empty."""
        if settings.start in ("inputs", "gradient"):
            return settings.start
        return "inputs" if settings.budget else ""

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Set ``down``, or the fixed first pair, from the inputs (EVA), W (PiSSA) or the gradient (LoRA-GA)."""
        rank = len(self.down)
        if self.start_method == "inputs":
            assert statistics.inputs is not None
            _align_rows(self.down, statistics.inputs)
        elif self.start_method == "weight":
            u, s, v = torch.linalg.svd(statistics.matrix(), full_matrices=False)
            root = (s[:rank] / self.scale).sqrt()
            self.first_up[:, : len(root)], self.first_down[: len(root)] = u[:, :rank] * root, root[:, None] * v[:rank]
        elif self.start_method == "gradient":
            u, _, v = torch.linalg.svd(statistics.gradient_matrix(), full_matrices=False)
            half = min(rank, len(v) // 2)   # small layers have too few directions for two halves of `rank`
            _align_rows(self.first_down, v[:half])
            self.first_up[:, :half] = u[:, half : 2 * half] * self.first_down.norm(dim=1).mean()

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up [rows, r]`` with the scale and ``down [r, columns]``; r is twice the rank with a first pair."""
        if not self.has_first:
            return self.up if self.scale == 1 else self.up * self.scale, self.down
        up, down = torch.cat([self.first_up, self.up], 1), torch.cat([self.down, self.first_down + self.down])
        return up * self.scale, down


def _align_rows(down: Tensor, directions: Tensor) -> None:
    """Give the rows of ``down`` new directions, as far as there are any, and leave them their lengths."""
    found = directions[: len(down)]
    down[: len(found)] = nn.functional.normalize(found, dim=1) * down[: len(found)].norm(dim=1, keepdim=True)
