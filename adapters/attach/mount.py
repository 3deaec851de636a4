"""Attach adapters to a live model and take them off again, leaving it byte for byte as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from atelier.adapters.attach.low_rank_forward import low_rank_forwards, supports_low_rank_forward
from atelier.adapters.core.base import Adapter, AdapterSet, bias_of
from atelier.adapters.core.cast_factors import FactorCache, ScaledAdapter
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.weight_only_int8 import QuantizedLayer, weight_shape
from atelier.kernels.torch_internals import child_of


class MountError(ValueError):
    """An adapter that does not fit the model; the message names the first layers that differ."""


def find_target_modules(models: Mapping[str, nn.Module], adapters: AdapterSet) -> dict[str, nn.Module]:
    """Find every target of ``adapters`` in ``models`` (component name → model).

    Raises:
        MountError: a layer is missing, has another shape, or has no bias where the adapter changes one.
    """
    found: dict[str, nn.Module] = {}
    wrong: list[str] = []
    for spec in adapters.specs:
        module = find_module(models, spec.name)
        if module is None:
            wrong.append(f"{spec.name} is missing")
            continue
        shape = weight_shape(module)
        if not adapters[spec.name].matches_shape(shape):
            known = tuple(size or "any" for size in spec.shape)
            wrong.append(f"{spec.name} is {shape} here and {known} in the adapter")
        elif bias_of(module) is None and adapters[spec.name].needs_bias:
            wrong.append(f"{spec.name} has no bias here, but the adapter changes one")
        found[spec.name] = module
    if wrong:
        raise MountError(
            f"This adapter was made for another base model: {len(wrong)} of {len(adapters)} layers don't match "
            f"({'; '.join(wrong[:3])}). Choose the base model it was trained on."
        )
    return found


def find_module(models: Mapping[str, nn.Module], name: str) -> nn.Module | None:
    """A module by its name. transformers 5 dropped a level of some text encoders, which other files still have."""
    component, _, path = name.partition(".")
    for candidate in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        found = reduce(_child, candidate.split("."), models.get(component))
        if found is not None:
            return found
    return None


def _child(module: nn.Module | None, name: str) -> nn.Module | None:
    return None if module is None else child_of(module, name)


@contextmanager
def mount(models: Mapping[str, nn.Module], mix: Mix) -> Iterator[None]:
    """Add every adapter of the Mix to the outputs of its target modules while the context is open.

    The weights are never touched, so unmounting restores the model exactly. Adapters at strength 0 are not
    attached at all: the base model then computes what it always does, bit for bit.

    Raises:
        MountError: an adapter does not fit.
    """
    factors = FactorCache()
    with ExitStack() as stack:
        for clock in mix.timestep_trackers() if "unet" in models else ():
            stack.enter_context(models["unet"].register_forward_pre_hook(clock.read_timestep, with_kwargs=True))
        beside: dict[nn.Module, Sequence[ScaledAdapter]] = {}
        for module, parts in group_by_module(models, mix).items():
            # What a layer of codes makes must not be kept for the backward pass, as one operation for both would.
            plain = supports_low_rank_forward(module) and not isinstance(module, QuantizedLayer)
            if plain and all(has_plain_factors(adapter) for adapter, _ in parts):
                beside[module] = parts
                if parts[0][0].spec.name.startswith("unet."):
                    factors.add(module, parts)
                continue
            for adapter, strength in parts:
                hook = partial(add_update, adapter=adapter, strength=strength)
                stack.enter_context(module.register_forward_hook(hook))
        for module, forward in low_rank_forwards(beside, factors):
            stack.enter_context(replace_forward(module, forward))
        if "unet" in models:
            stack.enter_context(models["unet"].register_forward_pre_hook(factors.prepare))
        yield


def group_by_module(models: Mapping[str, nn.Module], mix: Mix) -> dict[nn.Module, list[ScaledAdapter]]:
    """The adapters and strengths that change each module, in the order of the Mix."""
    parts: dict[nn.Module, list[ScaledAdapter]] = {}
    for adapters, strength in mix.active():
        for name, module in find_target_modules(models, adapters).items():
            parts.setdefault(module, []).append((adapters[name], strength * adapters.scale_of(name)))
    return parts


@torch.no_grad()
def has_plain_factors(adapter: Adapter) -> bool:
    """Whether an adapter's forward pass is the product of its factors, and nothing is added to the bias."""
    # An adapter with a forward pass of its own does not always compute what its factors say.
    plain = type(adapter).forward is Adapter.forward and not adapter.adds_bias
    return plain and adapter.factors() is not None


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module computes ``forward`` while this is open."""
    original = module.__dict__.get("forward")   # set on the object itself when another library hooked it
    module.forward = forward
    try:
        yield
    finally:
        if original is None:
            del module.forward
        else:
            module.forward = original


def add_update(
    module: nn.Module, args: tuple[Any, ...], output: Tensor, *, adapter: Adapter, strength: float
) -> Tensor:
    """What a module answers with an adapter at some strength: a hook."""
    update = adapter(args[0], module)
    if (shift := adapter.bias_delta(bias_of(module))) is not None:
        ones = [1] * (output.dim() - 2) if is_channels_first(module) else []
        update = update + shift.to(update).reshape(-1, *ones)
    return output + (update if strength == 1 else update * strength)


def is_channels_first(module: nn.Module) -> bool:
    """Whether outputs are [batch, features, …] and not [batch, …, features]."""
    return isinstance(module, nn.Conv2d | nn.GroupNorm)
