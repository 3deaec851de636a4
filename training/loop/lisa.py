"""LISA (Pan et al. 2024, arXiv 2403.17919): Adam with a state for a few layers at a time, drawn again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHARE = 0.125   # of the layers that are trained at a time
PERIOD = 10     # updates until others are drawn


class Lisa(torch.optim.AdamW):
    """AdamW on a share of the parameters, drawn without regard to their size; the others have neither update nor state.

    Who is drawn follows from the number of the period alone, so a run that resumes goes on with the same layers.
    Differences: the authors always train the embeddings and the head too, which a UNet has not; their code lets the
    states of all layers pile up, here those that are no longer drawn are dropped.

    Args:
        parameters: one for each layer.
        lr: learning rate.
        share: of the parameters that are trained at a time; at least one is.
        period: updates until others are drawn.
        weight_decay: AdamW's.
    """

    def __init__(
        self, parameters: Any, lr: float, *, share: float = SHARE, period: int = PERIOD, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.share, self.period = share, period
        self.param_groups[0]["updates"] = 0   # where a checkpoint has it

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the layers that are drawn; returns what ``closure`` gives."""
        loss = None if closure is None else closure()
        first = self.param_groups[0]
        chosen = self._chosen(first["updates"] // self.period)
        first["updates"] += 1
        for parameter in self._parameters():
            if id(parameter) not in chosen:
                parameter.grad = None
                self.state.pop(parameter, None)
        super().step()
        return loss

    def _chosen(self, period: int) -> set[int]:
        everybody = self._parameters()
        count = max(1, round(self.share * len(everybody)))
        order = torch.randperm(len(everybody), generator=torch.Generator().manual_seed(period))
        return {id(everybody[place]) for place in order[:count].tolist()}

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
