"""Kinds whose low-rank pair depends on the weight of the base model; apart, because kinds of two families are such."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, weight_of


class WeightPairAdapter(Adapter):
    """ΔW = up @ down, where a kind makes the two of its parameters and of W."""

    def pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``up [rows, r]`` and ``down [r, columns]``, scale included, for this W."""
        raise NotImplementedError

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW in the shape of ``weight``."""
        up, down = self.pair(weight)
        return (up @ down).reshape(weight.shape)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """ΔW x through two small layers, without forming ΔW."""
        if getattr(module, "groups", 1) > 1:
            return super().forward(x, module)
        with torch.autocast(x.device.type, enabled=False):
            pair = self.pair(weight_of(module))
        return self.apply_low_rank(x, module, *pair)
