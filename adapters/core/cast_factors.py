"""The low-rank factors of many layers at once: cast to a model's precision by one operation, not by two for each layer.

A training step of a small batch is bound by the number of operations. Adapters stay in float32, and at every call of
the model their factors are laid side by side, cast, and cut apart again; autograd does the same with their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter

ScaledAdapter = tuple[Adapter, float]   # with its strength
Pair = tuple[Tensor, Tensor]   # up, down


class FactorCache:
    """Factors of the linear layers of one model."""

    def __init__(self) -> None:
        self._layers: dict[nn.Module, Sequence[ScaledAdapter]] = {}
        self._cast: dict[nn.Module, Pair] = {}

    def add(self, module: nn.Module, parts: Sequence[ScaledAdapter]) -> None:
        """Have a layer's factors ready whenever the model is called."""
        self._layers[module] = parts

    def prepare(self, model: nn.Module, _args: tuple[Any, ...]) -> None:
        """Cast all factors: a hook before a call of the model."""
        self._cast = {}
        weight = next(model.parameters())
        dtype = compute_dtype(weight)
        if not self._layers or dtype == torch.float32:
            return   # nothing to cast: every layer takes its own
        pairs = {module: concatenate_factors(parts) for module, parts in self._layers.items()}
        sizes = [factor.numel() for pair in pairs.values() for factor in pair]
        flat = torch.cat([factor.flatten() for pair in pairs.values() for factor in pair]).to(weight.device, dtype)
        pieces = iter(flat.split(sizes))
        self._cast = {module: (next(pieces).view_as(up), next(pieces).view_as(down))
                      for module, (up, down) in pairs.items()}

    def of(self, module: nn.Module, parts: Sequence[ScaledAdapter], x: Tensor) -> Pair:
        """A layer's factors in the precision that it computes in; formed now where the model was not called."""
        dtype, known = compute_dtype(x), self._cast.get(module)
        if known is not None and known[0].dtype == dtype:
            return known
        up, down = concatenate_factors(parts)
        return up.to(x.device, dtype), down.to(x.device, dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a layer computes in: autocast's precision where it is on."""
    place = x.device.type
    return torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else x.dtype


def concatenate_factors(parts: Sequence[ScaledAdapter]) -> Pair:
    """All adapters' factors of one layer as one pair, strengths included."""
    ups, downs = zip(*(_scaled_factors(adapter, strength) for adapter, strength in parts), strict=True)
    return (torch.cat(ups, 1), torch.cat(downs)) if len(parts) > 1 else (ups[0], downs[0])


def _scaled_factors(adapter: Adapter, strength: float) -> Pair:
    factors = adapter.factors()
    assert factors is not None
    up, down = factors
    return (up if strength == 1 else up * strength), down
