"""What a layer computes with low-rank pairs beside its frozen weight: one operation for all adapters there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from atelier.adapters.core.base import weight_of
from atelier.adapters.core.cast_factors import FactorCache, ScaledAdapter
from atelier.kernels.low_rank import low_rank_linear, low_rank_linears, low_rank_pointwise

Forward = Callable[[Tensor], Tensor]
Layers = Mapping[nn.Module, Sequence[ScaledAdapter]]
# Projections of an attention that read the same: in its own words of itself, or of the text.
SHARED_INPUT_PROJECTIONS = {"attn1": ("to_q", "to_k", "to_v"), "attn2": ("to_k", "to_v")}


def supports_low_rank_forward(module: nn.Module) -> bool:
    """Whether the operation exists for this layer: linear ones, and convolutions that look at one place at a time."""
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, nn.Linear)
    whole = module.kernel_size == module.stride == (1, 1) and module.padding in ((0, 0), "valid")
    return whole and module.groups == 1


def low_rank_forwards(layers: Layers, factors: FactorCache) -> Iterator[tuple[nn.Module, Forward]]:
    """Each layer with its new forward pass.

    Args:
        layers: with their adapters, all of which have factors and leave the bias as it is.
        factors: of the model that is called.
    """
    names = {parts[0][0].spec.name: module for module, parts in layers.items()}
    for name, module in names.items():
        parent, _, own = name.rpartition(".")
        alike = SHARED_INPUT_PROJECTIONS.get(parent.rpartition(".")[2], ())
        group = [names[other] for part in alike if (other := f"{parent}.{part}") in names]
        if own not in alike or not _share_an_input(group):
            yield module, partial(_forward_one, module, layers[module], factors)
        elif module is group[0]:
            together = _SharedInputLayers({other: layers[other] for other in group}, factors)
            yield from ((other, partial(together.forward, other)) for other in group)


def _share_an_input(group: Sequence[nn.Module]) -> bool:
    plain = all(isinstance(module, nn.Linear) and module.bias is None for module in group)
    return plain and len({module.in_features for module in group}) == 1


def _forward_one(module: nn.Module, parts: Sequence[ScaledAdapter], factors: FactorCache, x: Tensor) -> Tensor:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    up, down = factors.of(module, parts, x)
    bias = None if module.bias is None else module.bias.to(up.dtype)
    operation = low_rank_linear if isinstance(module, nn.Linear) else low_rank_pointwise
    return operation(x.to(up.dtype), module.weight.to(up.dtype), bias, up, down)


class _SharedInputLayers:
    """Layers that are asked one after the other for the same input: the first computes what the others will give."""

    def __init__(self, layers: Layers, factors: FactorCache) -> None:
        self._layers, self._factors = layers, factors
        self._first = next(iter(layers))
        self._seen: Tensor | None = None
        self._ready: dict[nn.Module, Tensor] = {}

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """What one of them answers."""
        if module is self._first:
            self._seen, self._ready = x, self._all(x)
        if x is not self._seen or module not in self._ready:   # somebody's own attention asks in its own way
            return _forward_one(module, self._layers[module], self._factors, x)
        answer = self._ready.pop(module)
        if not self._ready:
            self._seen = None
        return answer

    def _all(self, x: Tensor) -> dict[nn.Module, Tensor]:
        pairs = [self._factors.of(module, parts, x) for module, parts in self._layers.items()]
        ups, downs = zip(*pairs, strict=True)
        weights = [weight_of(module).to(ups[0].dtype) for module in self._layers]
        answers = low_rank_linears(x.to(ups[0].dtype), weights, ups, downs)
        return dict(zip(self._layers, answers, strict=True))
