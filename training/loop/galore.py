"""GaLore (Zhao et al. 2024, arXiv 2403.03507): Adam whose moments live in the main directions of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atelier.adapters.formats.low_rank import truncated_svd

RANK = 16      # directions that are kept of each gradient
PERIOD = 50    # updates after which they are looked for anew; the authors' 200 are for long trainings


class Galore(torch.optim.Optimizer):
    """Every matrix wider than ``rank`` is updated within the ``rank`` main directions of its gradient's shorter side.

    ::

        R = G Qᵀ (or Pᵀ G where the rows are fewer);  W ← W − lr · Adam(R) Q (or P Adam(R))

    Q ``[r, columns]`` (P ``[rows, r]``) are singular vectors of the gradient every ``period`` updates. Two moments of
    ``r · max(rows, columns)`` values and Q stand in the place of ``2 · rows · columns``. Other parameters get Adam.
    Differences: the authors multiply the update by α, which here is part of the rate; moments begin anew with new
    directions, because those before are coordinates in other ones; kernels of convolutions are ``[rows, columns]``.

    Args:
        parameters: as of any optimizer.
        lr: learning rate.
        rank: directions that are kept.
        period: updates between two searches for them.
        eight_bits: keep both moments as 8-bit codes with one scale for each row (block-wise as in 8-bit GaLore).
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self, parameters: Any, lr: float, *, rank: int = RANK, period: int = PERIOD, eight_bits: bool = False,
        weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> None:   # fmt: skip
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})
        self.rank, self.period, self.eight_bits = rank, period, eight_bits

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what ``closure`` gives."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter, parameter.grad)
        return loss

    def _update(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        project = gradient.dim() == 2 and min(gradient.shape) > self.rank
        if project and state.get("updates", 0) % self.period == 0:
            state.clear()
            state["directions"] = _directions(gradient, self.rank)
        state["updates"] = state.get("updates", 0) + 1
        wide = project and len(gradient) < gradient.shape[1]
        if project:
            gradient = state["directions"].T @ gradient if wide else gradient @ state["directions"].T
        direction = self._adam(group, state, gradient)
        if project:
            direction = state["directions"] @ direction if wide else direction @ state["directions"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])

    def _adam(self, group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
        """Adam's direction; the moments are in the shape of ``gradient``, whatever this is."""
        first, second = group["betas"]
        mean, square = self._moments(state, gradient)
        mean = mean.lerp(gradient, 1 - first)
        square = square.lerp(gradient.square(), 1 - second)
        self._keep(state, mean, square)
        updates = state["updates"]
        root = (square / (1 - second**updates)).sqrt().add_(group["eps"])
        return mean / (1 - first**updates) / root

    def _moments(self, state: dict[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
        if "mean" not in state:
            return torch.zeros_like(like), torch.zeros_like(like)
        if not self.eight_bits:
            return state["mean"], state["square"]
        # A state that was loaded has codes as floats: torch converts it to the parameter's type.
        return (state["mean"].to(like.dtype) * state["mean_scale"],
                (state["square"].to(like.dtype) * state["square_scale"]).square())   # fmt: skip

    def _keep(self, state: dict[str, Any], mean: Tensor, square: Tensor) -> None:
        if not self.eight_bits:
            state["mean"], state["square"] = mean, square
            return
        state["mean_scale"], state["square_scale"] = _scale(mean, 127), _scale(square.sqrt(), 255)
        state["mean"] = (mean / state["mean_scale"]).round().to(torch.int8)
        # Rounded up: a second moment that became 0 would make its update as large as the first allows.
        state["square"] = (square.sqrt() / state["square_scale"]).ceil().clamp_(0, 255).to(torch.uint8)


def _directions(gradient: Tensor, rank: int) -> Tensor:
    """Main directions of the shorter side: P ``[rows, rank]`` where the rows are fewer, else Q ``[rank, columns]``."""
    u, _, v = truncated_svd(gradient.float(), rank)
    found = u[:, :rank] if len(gradient) < gradient.shape[1] else v[:rank]
    return found.to(gradient.dtype).contiguous()


def _scale(values: Tensor, largest: int) -> Tensor:
    """What one code stands for, for each row."""
    rows = values.abs().amax(-1, keepdim=True) if values.dim() else values.abs()
    return (rows / largest).clamp_min(math.ldexp(1, -120))
