"""AdaLoRA: one budget of directions for all layers, given during the training to those that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings

PERIOD = 10               # updates between two allocations
BEGIN, END = 0.1, 0.7     # shares of the training between which directions are allocated
SMOOTHING = 0.85          # of scores, from one update to the next


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaloraSettings(RankSettings):
    """Rank on average, and what decides which layers get more of it."""

    rank: int = setting(8, "Rank that layers have on average in the end. Each can have up to twice as much.",
                        low=1, high=1024)   # fmt: skip
    score: str = setting("sensitivity", "Score of a direction: how sensitive the loss is to it (AdaLoRA), the same for "
                                        "whole layers that begin with one direction and grow (IncreLoRA), what its "
                                        "removal would cost (DiffoRA), or what it has contributed so far (CoLoRA).",
                         choices=("sensitivity", "growth", "removal", "contribution"))   # fmt: skip


class Adalora(Adapter):
    """ΔW = scale · up @ diag(gain) @ down   (AdaLoRA, Zhang et al. 2023, arXiv 2303.10512).

    Shapes: ``up [rows, r]``, orthonormal at the start, ``gain [r]``, ``down [r, columns]``, Kaiming-uniform with a =
    √5; r = min(2 · rank, rows, columns). Parameters: min(2 · rank, rows, columns) · (rows + columns + 1).
    Start: ``gain`` zero, so ΔW = 0. Between a tenth and seven tenths of the training, every 10 updates, directions of
    all layers are ranked by their score for each value they take, and those beyond the budget get gain 0; the budget
    falls to what rank ``rank`` in every layer takes, or rises to it from 1. A finished training is saved as a LoRA
    with the ranks that are left. Scores, of gradients g, smoothed over updates:

    - ``sensitivity``: mean |value · g| of the direction's values, times how much that varies (AdaLoRA);
    - ``growth``: the sum of |gain · g| over a layer, shared by its directions, with 1 direction first (IncreLoRA, Zhang
      et al. 2023, arXiv 2308.12043);
    - ``removal``: −gain · g, what the loss would rise by, to first order (our reading of DiffoRA, 2025, arXiv
      2502.08905, without its second loss);
    - ``contribution``: the sum of |change of gain · g| over all updates (CoLoRA's integral, along the training).

    Left out: the penalty that keeps ``up`` and ``down`` orthogonal.
    """

    kind = "adalora"
    title = "AdaLoRA (rank where it matters)"
    settings = AdaloraSettings
    saved_as = "lora"
    is_active: Tensor
    level: Tensor
    spread: Tensor

    def __init__(self, spec: Spec, settings: AdaloraSettings) -> None:
        super().__init__(spec, settings)
        rank = min(2 * settings.rank, spec.rows, spec.columns)
        self.scale, self.rank, self.score = settings.scale, settings.rank, settings.score
        self.up = nn.Parameter(torch.linalg.qr(torch.randn(spec.rows, rank)).Q)
        self.gain, self.down = nn.Parameter(torch.zeros(rank)), nn.Parameter(torch.empty(rank, spec.columns))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        first = 1 if settings.score == "growth" else rank
        self.register_buffer("is_active", torch.arange(rank) < first)
        self.register_buffer("level", torch.zeros(rank))    # of the score
        self.register_buffer("spread", torch.zeros(rank))   # how far it is off its level, on average
        self.before: tuple[Tensor, Tensor] | None = None    # gain and its gradient, while an update is made

    @classmethod
    def parameter_count(cls, spec: Spec, settings: AdaloraSettings) -> int:
        """r · (rows + columns + 1)."""
        return min(2 * settings.rank, spec.rows, spec.columns) * (spec.rows + spec.columns + 1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up`` with gains and scale, and ``down``."""
        return self.up * (self.scale * self.gain), self.down

    @classmethod
    @torch.no_grad()
    def before_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:   # noqa: ARG003 (all are alike)
        """Score every direction by the gradients."""
        for adapter in adapters:
            assert isinstance(adapter, Adalora)
            if adapter.gain.grad is not None:
                adapter.note_scores(adapter.gain.grad)

    def note_scores(self, gradient: Tensor) -> None:
        """Smooth this update's scores, given the gradient of the gains, into what is known of them."""
        product = self.gain * gradient
        self.before = self.gain.detach().clone(), gradient.clone()
        match self.score:
            case "contribution":
                return
            case "removal":
                score = -product
            case "growth":
                score = product.abs().sum().expand_as(product)
            case _:
                score = product.abs()
                for factor, side in ((self.up, 0), (self.down, 1)):
                    score = score + (0 if factor.grad is None else (factor * factor.grad).abs().mean(side))
        self.level.lerp_(score, 1 - SMOOTHING)
        self.spread.lerp_((score - self.level).abs(), 1 - SMOOTHING)

    def worth(self) -> Tensor:
        """What each direction is worth for each value that it takes ``[r]``."""
        worth = self.level * self.spread if self.score in ("sensitivity", "growth") else self.level
        if self.score == "growth":   # the first direction of a layer before its second
            worth = worth / torch.arange(1, len(worth) + 1, device=worth.device)
        return worth / self.cost

    @property
    def cost(self) -> int:
        """Values that a direction takes in the file."""
        return self.spec.rows + self.spec.columns

    @classmethod
    @torch.no_grad()
    def after_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Note what was contributed, allocate directions when it is time, and hold those without one at 0."""
        own = [adapter for adapter in adapters if isinstance(adapter, Adalora)]
        for adapter in own:
            if adapter.score == "contribution" and adapter.before is not None:
                old, gradient = adapter.before
                adapter.level.add_(((adapter.gain - old) * gradient).abs())
            adapter.before = None
        is_time = update.step % PERIOD == 0 and BEGIN <= update.progress < END
        if is_last := update.step == max(1, int(END * update.steps)):
            allocate(own, 1.0)
        elif is_time:
            allocate(own, (update.progress - BEGIN) / (END - BEGIN))
        for adapter in own:
            if is_time or is_last or update.progress > END or adapter.score == "growth":
                adapter.gain.mul_(adapter.is_active)


def allocate(adapters: Sequence[Adalora], done: float) -> None:
    """Choose the active directions of all layers together.

    Args:
        adapters: of one set.
        done: share of the time for allocation that is over; at 1 the budget is that of the settings' rank.
    """
    goal = sum(min(adapter.rank, len(adapter.gain)) * adapter.cost for adapter in adapters)
    if adapters[0].score == "growth":
        start = sum(adapter.cost for adapter in adapters)
        budget = start + (goal - start) * done
    else:
        whole = sum(len(adapter.gain) * adapter.cost for adapter in adapters)
        budget = goal + (whole - goal) * (1 - done) ** 3
    worth = torch.cat([adapter.worth() for adapter in adapters])
    costs = torch.cat([torch.full_like(adapter.level, adapter.cost) for adapter in adapters]).double()
    order = worth.argsort(descending=True, stable=True)
    chosen = torch.empty_like(order, dtype=torch.bool)
    chosen[order] = costs[order].cumsum(0) <= budget
    for adapter, own in zip(adapters, chosen.split([len(adapter.gain) for adapter in adapters]), strict=True):
        adapter.is_active.copy_(own)
