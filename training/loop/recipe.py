"""What a method brings to the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from atelier.adapters.core.base import AdapterSet
from atelier.training.config.events import Previewed


@dataclass(frozen=True, slots=True)
class Losses:
    """One microstep's losses."""

    subject: Tensor   # scalar
    prior: Tensor     # scalar, already weighted; 0 without prior preservation
    companion: Tensor | None = None   # scalar: all that the recipe's companions learn from, and nobody else


class Drawn(Protocol):
    """Everything of a microstep that is random or comes from the CPU, already on the device."""

    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        ...

    def kind(self) -> Hashable:
        """Alike for those that differ in nothing but the values of their tensors."""
        ...


class Parts(NamedTuple):
    """A microstep in two parts. The second never waits for the device, so it can be recorded."""

    draw: Callable[..., Any]               # of a generator, and of the process group: a Drawn
    compute: Callable[[Any], Losses]


def _unmeasured(weights: AdapterSet) -> float:
    raise NotImplementedError("this recipe holds nothing back to validate on: set validate_every to 0")


def _undrawn(weights: AdapterSet, step: int, prompt: str) -> list[Previewed]:   # noqa: ARG001 (as the field says)
    return []


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a method brings to the loop."""

    adapters: AdapterSet
    attached: Callable[[], AbstractContextManager[None]]    # adapters act on the model while this is open
    microstep: Callable[..., Losses]                        # of a generator, and of the processes that share the batch
    parts: Parts | None = None                              # the same microstep, where it can be taken apart
    validate: Callable[[AdapterSet], float] = _unmeasured   # deterministic: the same weights give the same number
    preview: Callable[[AdapterSet, int, str], list[Previewed]] = _undrawn   # step, prompt ("" = the recipe's own)
    reselect: Callable[[], None] = lambda: None             # half way: the adapters choose what trains on
    companions: Sequence[nn.Parameter] = ()                 # learn apart from the others, and slower
    speed: float = 1.0                                      # how many times the config's rate those others learn with
    reshape_gradients: Callable[[], None] = lambda: None    # between the backward pass and the update
    kept: Callable[[AdapterSet], AdapterSet] = lambda adapters: adapters   # what of the result goes into the file
