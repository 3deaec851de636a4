"""Several processes that train one adapter together: each takes its share of every batch; the first one writes.

``accelerate launch --num_processes 2 -m atelier.training.runs.run …`` starts them.
A process on its own is a group of one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process's rank among all that work on the run, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes events, files and previews."""
        return self.rank == 0

    def shard(self, size: int) -> range:
        """Positions of a batch of ``size`` that this process computes; none where there are too few."""
        return range(self.rank, size, self.size)

    def broadcast(self, value: T) -> T:
        """What the first process says, in all of them: each waits here for the others."""
        return value if self.size == 1 else broadcast_object_list([value])[0]

    def all_reduce(self, losses: Sequence[float], parameters: Sequence[nn.Parameter]) -> list[float]:
        """Losses and gradients of the whole batch, from every process's share; the gradients are put in place."""
        if self.size == 1:
            return list(losses)
        place = parameters[0].device
        known = [float(parameter.grad is not None) for parameter in parameters]
        gradients = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        sizes = [len(losses), len(known), *map(len, gradients)]
        numbers = torch.cat([torch.tensor([*losses, *known], device=place), *gradients])
        total: Any = reduce(numbers, "sum")
        (all_losses, anywhere), sums = total.split(sizes)[:2], total.split(sizes)[2:]
        for parameter, count, gradient in zip(parameters, anywhere.tolist(), sums, strict=True):
            # One that no process used has no gradient, and the optimizer leaves it alone, as in a process alone.
            parameter.grad = gradient.view_as(parameter) if count else None
        return all_losses.tolist()


SINGLE_PROCESS = ProcessGroup()


def join_group(device: torch.device) -> ProcessGroup:
    """Find the other processes, if a launcher started this one with others."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    state = PartialState(cpu=device.type == "cpu")   # a GPU each, which it makes the current one
    return ProcessGroup(state.process_index, state.num_processes)


def leave_group(group: ProcessGroup) -> None:
    """Leave the process group, if there is one."""
    if group.size > 1:
        PartialState().destroy_process_group()
