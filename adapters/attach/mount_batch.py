"""Every picture of a batch with adapters of its own, in one call of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from atelier.adapters.attach.mount import add_update, group_by_module, has_plain_factors
from atelier.adapters.core.cast_factors import ScaledAdapter, compute_dtype, concatenate_factors
from atelier.adapters.core.mix import Mix
from atelier.kernels.segmented_low_rank import Pair, add_segmented_conv2d, add_segmented_linear, stack_pairs

Parts = Sequence[ScaledAdapter]


@contextmanager
def mount_batch(models: Mapping[str, nn.Module], mixes: Sequence[Mix]) -> Iterator[None]:
    """Picture n of a batch is computed with ``mixes[n]`` while the context is open; nothing is merged.

    A batch of several times as many pictures, as guidance makes it, has the mixes again and again. Low-rank adapters
    are batched products (`kernels/segmented_low_rank.py`), whatever their ranks; other kinds are computed picture by
    picture. Weights are not touched.

    Raises:
        MountError: an adapter does not fit.
        ValueError: a batch that is not a multiple of the mixes, in a call of the model.
    """
    with ExitStack() as stack:
        for mix in mixes if "unet" in models else ():
            for tracker in mix.timestep_trackers():
                stack.enter_context(models["unet"].register_forward_pre_hook(tracker.read_timestep, with_kwargs=True))
        for module, parts in _parts_of_pictures(models, mixes).items():
            stack.enter_context(module.register_forward_hook(_BatchUpdate(module, parts)))
        yield


def _parts_of_pictures(models: Mapping[str, nn.Module], mixes: Sequence[Mix]) -> dict[nn.Module, list[Parts]]:
    """For each module that any mix changes, the adapters of every picture."""
    found: dict[nn.Module, list[Parts]] = {}
    for n, mix in enumerate(mixes):
        for module, parts in group_by_module(models, mix).items():
            found.setdefault(module, [()] * len(mixes))[n] = parts
    return found


class _BatchUpdate:
    """What is added to the output of one module: a hook."""

    def __init__(self, module: nn.Module, parts: Sequence[Parts]) -> None:
        products = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _is_one_group(module))
        self._low_rank: list[Parts] = []
        self._others: list[Parts] = []
        for of_picture in parts:
            plain = [has_plain_factors(adapter) and products for adapter, _ in of_picture]
            self._low_rank.append([part for part, is_plain in zip(of_picture, plain, strict=True) if is_plain])
            self._others.append([part for part, is_plain in zip(of_picture, plain, strict=True) if not is_plain])
        self._stacked: Pair | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The output with each picture's update."""
        x = args[0]
        if len(x) % len(self._others):
            raise ValueError(f"a batch of {len(x)} pictures can't be divided among {len(self._others)} mixes")
        if any(self._low_rank):
            up, down = self._factors(x)
            if isinstance(module, nn.Conv2d):
                output = add_segmented_conv2d(output.to(up.dtype), x.to(up.dtype), up, down, module)
            else:
                output = add_segmented_linear(output.to(up.dtype), x.to(up.dtype), up, down)
        if any(self._others):
            output = self._add_others(module, x, output)
        return output

    def _factors(self, x: Tensor) -> Pair:
        """Stacked once, in the precision that the layer computes in."""
        dtype = compute_dtype(x)
        if self._stacked is None or self._stacked[0].dtype != dtype or self._stacked[0].device != x.device:
            pairs = [concatenate_factors(parts) if parts else None for parts in self._low_rank]
            stacked = stack_pairs(pairs, next(pair for pair in pairs if pair is not None))
            self._stacked = stacked[0].to(x.device, dtype), stacked[1].to(x.device, dtype)
        return self._stacked

    def _add_others(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        count = len(self._others)
        rows = [output[n::count] for n in range(count)]
        for n, parts in enumerate(self._others):
            for adapter, strength in parts:
                rows[n] = add_update(module, (x[n::count],), rows[n], adapter=adapter, strength=strength)
        return torch.stack(rows, 1).flatten(0, 1)


def _is_one_group(module: nn.Conv2d) -> bool:
    return module.groups == 1 and not isinstance(module.padding, str) and module.padding_mode == "zeros"
