"""What a training method brings to the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.training.config.events import Measured, Previewed


@dataclass(frozen=True, slots=True)
class Losses:
    """One microstep's losses."""

    subject: Tensor   # scalar
    prior: Tensor     # scalar, already weighted; 0 without prior preservation
    companion: Tensor | None = None   # scalar: all that the recipe's companions learn from, and nobody else


class MicrostepInput(Protocol):
    """Everything of a microstep that is random or comes from the CPU, already on the device."""

    def tensors(self) -> list[Tensor]:
        """Every tensor in a fixed order: a recording copies new values into the first input's."""
        ...

    def signature(self) -> Hashable:
        """Equal for inputs that differ in nothing but the values of their tensors."""
        ...


class MicrostepStages(NamedTuple):
    """A microstep in two stages. The second never waits for the device, so it can be recorded."""

    prepare: Callable[..., Any]            # of a generator and the process group: a MicrostepInput
    compute: Callable[[Any], Losses]


def _no_validation(weights: AdapterSet) -> float:
    raise NotImplementedError("this recipe holds out no pictures to validate on: set validate_every to 0")


def _no_preview(weights: AdapterSet, step: int, prompt: str) -> list[Previewed]:   # noqa: ARG001 (as the field says)
    return []


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a method brings to the loop."""

    adapters: AdapterSet
    mount: Callable[[], AbstractContextManager[None]]       # adapters act on the model while this is open
    microstep: Callable[..., Losses]                        # of a generator and the process group that shares the batch
    stages: MicrostepStages | None = None                   # the same microstep in two stages, where that is possible
    validate: Callable[[AdapterSet], float] = _no_validation   # deterministic: the same weights give the same number
    preview: Callable[[AdapterSet, int, str], list[Previewed]] = _no_preview   # step, prompt ("" = the recipe's own)
    measure: Callable[[AdapterSet, int], Measured | None] = lambda weights, step: None   # noqa: ARG005
    update_masks: Callable[[], None] = lambda: None         # half way: adapters choose anew which values are trained
    companions: Sequence[nn.Parameter] = ()                 # learn from their own loss, and slower than the others
    lr_ratio: float = 1.0                                   # the others' learning rate over that of the config
    reshape_gradients: Callable[[], None] = lambda: None    # between the backward pass and the update
    before_update: Callable[[OptimizerUpdate], None] = lambda update: None   # noqa: ARG005 (as the field says)
    after_update: Callable[[OptimizerUpdate], None] = lambda update: None    # noqa: ARG005 (as the field says)
    finalize: Callable[[AdapterSet], AdapterSet] = lambda adapters: adapters   # what of the result goes into the file
