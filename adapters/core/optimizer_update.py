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
    def forget(self, parameter: Tensor, chosen: Tensor) -> None:
        """Let the optimizer begin anew with some values of a parameter.

        Adam counts its updates once for a whole parameter, so with both moments 0 the first move of a value that joins
        late would be 3.2 learning rates long. Its second moment is the mean of the others' instead.

        Args:
            parameter: one that the optimizer has.
            chosen: which of its values, a mask of its shape.
        """
        for name, value in self.moments(parameter):
            others = value[~chosen] if name == "exp_avg_sq" else value.new_zeros(0)
            value.masked_fill_(chosen, others.mean() if len(others) else 0)
