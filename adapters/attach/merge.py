"""Write adapters into weights: as fast as the bare model, however many they are, and restored byte for byte.

Every ΔW is computed from the original W, and the sum is formed in float32 and rounded once. A :class:`MergeCache` keeps
the results from one drawing to the next: when one of many sliders moves, no adapter computes its ΔW again, and layers
whose strengths have not changed are reused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from atelier.adapters.attach.mount import MountError, group_by_module
from atelier.adapters.core.base import Adapter, bias_of
from atelier.adapters.core.cast_factors import ScaledAdapter
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.weight_only_int8 import QuantizedLayer
from atelier.adapters.kinds.sparse.sparse_adapter import SparseAdapter
from atelier.kernels.factor_forms import DenseFactor, Factor, factor_to
from atelier.kernels.merge_low_rank import LowRankUpdate, merge_low_rank

Pair = tuple[Factor, Factor]   # up, down
Layers = Mapping[nn.Module, Sequence[ScaledAdapter]]
DENSE_CACHE_BYTES = 2**30   # of dense updates; those beyond are computed whenever they are needed


def can_merge(models: Mapping[str, nn.Module], mix: Mix) -> bool:
    """Whether a Mix can be written into weights: it is the same at every step, and no module would need a new bias.

    Raises:
        MountError: an adapter does not fit.
    """
    if mix.live():
        return False
    return all(bias_of(module) is not None or not any(part.adds_bias for part, _ in parts)
               for module, parts in group_by_module(models, mix).items())


def merge(models: Mapping[str, nn.Module], mix: Mix) -> AbstractContextManager[None]:
    """Put W + Σ strength·ΔW in place of the weights while the context is open, then put the originals back.

    Refused for bfloat16 weights, where small updates vanish in the rounding (house rule 4), and for those in 8 bits:
    mount there instead.

    Raises:
        MountError: an adapter does not fit or is live, or the weights are bfloat16 or in 8 bits.
    """
    return MergeCache().merge(models, mix)


@dataclass(frozen=True, slots=True)
class MergedWeight:
    """A merged weight, and what it was made of."""

    original: Tensor
    parts: tuple[ScaledAdapter, ...]
    weight: Tensor


class DenseFactors(NamedTuple):
    """An adapter's factors in one layer, written out."""

    up: Tensor                  # [rows, rank]
    down: Tensor                # [columns, rank]
    sums: tuple[float, float]   # of both, to tell adapters apart by what they are


class MergeCache:
    """Merged weights of one model that are kept, with what they were made of. The adapters must stay as they are."""

    def __init__(self) -> None:
        self._woven: dict[nn.Module, MergedWeight] = {}
        self._pairs: WeakKeyDictionary[Adapter, Pair | None] = WeakKeyDictionary()
        self._flats: WeakKeyDictionary[Adapter, DenseFactors] = WeakKeyDictionary()
        self._dense: WeakKeyDictionary[Adapter, Tensor] = WeakKeyDictionary()

    def retain(self, active: Collection[Adapter]) -> None:
        """Drop what was computed of other adapters than these, where it takes a card's memory."""
        for kept in (self._pairs, self._flats, self._dense):
            for adapter in [one for one in kept if one not in active]:
                del kept[adapter]

    @contextmanager
    def merge(self, models: Mapping[str, nn.Module], mix: Mix) -> Iterator[None]:
        """As :func:`merge`, from what is here as far as it goes."""
        if mix.live():
            raise MountError("An adapter that depends on the timestep or the picture can't be merged into weights. "
                             "Mount it instead.")
        layers = group_by_module(models, mix)
        for module in layers:
            _check_precision(module)
        originals: list[tuple[nn.Parameter, Tensor]] = []
        try:
            with torch.no_grad():
                self._form(layers)
                weights = [(_parameter(module, "weight"), self._woven[module].weight) for module in layers]
                for parameter, merge in [*weights, *_biases(layers)]:
                    originals.append((parameter, parameter.data))
                    parameter.data = merge
            yield
        finally:
            for parameter, original in originals:
                parameter.data = original

    def _form(self, layers: Layers) -> None:
        """Merge what has changed; layers of pairs all in one launch, where a GPU does it."""
        before, self._woven = self._woven, {}
        pairs: dict[nn.Module, tuple[Tensor, LowRankUpdate]] = {}
        for module, parts in layers.items():
            weight, known = _parameter(module, "weight").data, before.get(module)
            if known is not None and not _same_memory(known.original, weight):
                known = None
            if known is not None and known.parts == tuple(parts):
                self._woven[module] = known
            elif all(self._pair(adapter, weight) for adapter, _ in parts):
                pairs[module] = (weight, self._update(parts, weight))
            else:
                self._woven[module] = MergedWeight(weight, tuple(parts), self._sum(parts, weight, known))
        woven = merge_low_rank([weight for weight, _ in pairs.values()], [update for _, update in pairs.values()])
        for (module, (weight, _)), formed in zip(pairs.items(), woven, strict=True):
            self._woven[module] = MergedWeight(weight, tuple(layers[module]), formed)

    def _update(self, parts: Sequence[ScaledAdapter], weight: Tensor) -> LowRankUpdate:
        """A layer's low-rank pairs as one."""
        if len(parts) == 1 and (pair := self._pair(parts[0][0], weight)):
            return LowRankUpdate(*pair, parts[0][1])
        flat = [(self._flat(adapter, weight), strength) for adapter, strength in parts]
        # The last digits of a sum are those of its order, and the order of the Mix shall not matter.
        flat.sort(key=lambda part: (part[1], part[0].sums))
        ups, downs = [pair.up * strength for pair, strength in flat], [pair.down for pair, _ in flat]
        return LowRankUpdate(DenseFactor(torch.cat(ups, 1)), DenseFactor(torch.cat(downs, 1)))

    def _flat(self, adapter: Adapter, weight: Tensor) -> DenseFactors:
        if adapter not in self._flats:
            pair = self._pair(adapter, weight)
            assert pair is not None
            up, down = pair[0].matrix(), pair[1].matrix()
            self._pairs[adapter] = DenseFactor(up), DenseFactor(down)
            self._flats[adapter] = DenseFactors(up, down, (up.sum().item(), down.sum().item()))
        return self._flats[adapter]

    def _pair(self, adapter: Adapter, weight: Tensor) -> Pair | None:
        if adapter not in self._pairs:
            forms = adapter.structured_factors()
            self._pairs[adapter] = forms and (factor_to(forms[0], weight.device), factor_to(forms[1], weight.device))
        return self._pairs[adapter]

    def _sum(self, parts: Sequence[ScaledAdapter], weight: Tensor, before: MergedWeight | None) -> Tensor:
        entries = _sparse_entries(parts, weight)
        if entries is not None:
            earlier = None if before is None else _sparse_entries(before.parts, weight)
            return _update_entries(weight, entries, None if before is None or earlier is None else (before, earlier[0]))
        update = sum((self._delta(adapter, weight) * strength for adapter, strength in parts), torch.zeros(()))
        return (weight.float() + update).to(weight.dtype)

    def _delta(self, adapter: Adapter, weight: Tensor) -> Tensor:
        if adapter in self._dense:
            return self._dense[adapter]
        dense = adapter.delta(weight).to(weight.device)
        if sum(kept.nbytes for kept in self._dense.values()) + dense.nbytes <= DENSE_CACHE_BYTES:
            self._dense[adapter] = dense
        return dense


def _sparse_entries(parts: Sequence[ScaledAdapter], weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Flat positions that change and by how much, where all adapters of a layer are sparse."""
    found = [(adapter.entries(), strength) for adapter, strength in parts if isinstance(adapter, SparseAdapter)]
    if len(found) < len(parts) or any(entries is None for entries, _ in found):
        return None
    index = torch.cat([entries[0] for entries, _ in found if entries]).to(weight.device)
    changes = torch.cat([entries[1].float() * strength for entries, strength in found if entries]).to(weight.device)
    positions, where = index.long().unique(return_inverse=True)
    return positions, torch.zeros(len(positions), device=weight.device).index_add_(0, where, changes)


def _update_entries(
    weight: Tensor, entries: tuple[Tensor, Tensor], earlier: tuple[MergedWeight, Tensor] | None
) -> Tensor:
    """Change a few entries of a copy; one that is there has the entries of other adapters put back first."""
    positions, changes = entries
    source = weight.reshape(-1)
    if earlier is None:
        copy = weight.clone(memory_format=torch.contiguous_format)
    else:
        copy = earlier[0].weight
        copy.view(-1)[earlier[1]] = source[earlier[1]]
    copy.view(-1)[positions] = (source[positions].float() + changes).to(weight.dtype)
    return copy


def _biases(layers: Layers) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for module, parts in layers.items():
        changes = [(adapter.bias_delta(bias_of(module)), strength) for adapter, strength in parts]
        shifts = [change * strength for change, strength in changes if change is not None]
        if shifts:
            if bias_of(module) is None:
                raise MountError("An adapter adds a bias to a layer that has none, which can't be merged. Mount it "
                                 "instead.")
            bias = _parameter(module, "bias")
            yield bias, (bias.data.float() + torch.stack(shifts).sum(0).to(bias.device)).to(bias.dtype)


def _check_precision(module: nn.Module) -> None:
    if isinstance(module, QuantizedLayer):
        raise MountError("Weights of 8 bits or fewer are too coarse to merge into. Mount the adapters instead.")
    if _parameter(module, "weight").dtype == torch.bfloat16:
        raise MountError("bfloat16 weights are too coarse to merge into. Mount the adapters instead.")


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same memory: `parameter.data` is another object every time."""
    return one.data_ptr() == other.data_ptr() and one.dtype == other.dtype
