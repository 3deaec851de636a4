"""One update of the optimizer, as adapters see it that choose what is trained while the training runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class OptimizerUpdate:
    """The update that is about to be made, or was just made."""

    step: int      # the first one is 1
    steps: int     # of the whole training
    lr: float
    state: Mapping[Any, Mapping[str, Any]]   # the optimizer's, by parameter; empty before the first update

    @property
    def progress(self) -> float:
        """Share of the training that is done with this update; 1 at the last."""
        return self.step / self.steps

    def moments(self, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What the optimizer remembers for every value of a parameter, by its name there."""
        for name, value in self.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield name, value

    @torch.no_grad()
    def forget(self, parameter: Tensor, chosen: Tensor, gradient: Tensor | None = None) -> None:
        """Let the optimizer begin anew with some values of a parameter.

        Adam counts its updates once for a whole parameter, so moments of 0 would make the first move of a value that
        joins late 3.2 times too long. With what gradient it joins, both moments start there instead.

        Args:
            parameter: one that the optimizer has.
            chosen: which of its values, a mask of its shape.
            gradient: of these values, in the shape of the parameter.
        """
        for name, value in self.moments(parameter):
            if gradient is None or name not in ("exp_avg", "exp_avg_sq"):
                value.masked_fill_(chosen, 0)
            else:
                start = gradient if name == "exp_avg" else gradient.square()
                value.copy_(torch.where(chosen, start.to(value), value))
