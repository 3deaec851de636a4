"""Microsteps from a recording: on a GPU, the thousands of launches of one become a single one (a CUDA graph).

What a small batch costs on a fast GPU is launching kernels, not computing. The first microsteps of every kind of batch
run as always, then one is recorded: forward pass, losses and backward pass, on tensors that stay where they are. From
then on what was drawn is copied there and the recording replayed. The optimizer's few launches stay outside, so that
every optimizer, clipping and gradient correction works as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.distributed import ProcessGroup
from atelier.training.loop.recipe import Losses, Recipe

FIRST = 3   # microsteps of a kind before one is recorded: libraries choose their algorithms in these
Work = Callable[[], Losses]


class Gpu(Protocol):
    """What records."""

    def run(self, work: Work) -> Losses:
        """Do it now."""
        ...

    def record(self, work: Work) -> tuple[Losses, Callable[[], None]]:
        """Do it later: what every replay will fill anew, and the replay.

        Raises:
            RuntimeError: the work can't be recorded.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recording:
    """One kind of microstep, ready to run again."""

    places: list[Tensor]   # where it reads
    losses: Losses         # what it leaves
    replay: Callable[[], None]


class Recorder:
    """Runs microsteps with their backward pass; gradients add up in tensors that must stay the same."""

    def __init__(self, recipe: Recipe, backward: Callable[[Losses], None], gpu: Gpu) -> None:
        assert recipe.parts is not None
        self._parts, self._attached = recipe.parts, recipe.attached
        self._backward, self._gpu = backward, gpu
        self._seen: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, Recording] = {}
        self._willing = True

    def __call__(self, generator: torch.Generator) -> Losses:
        """One microstep: its losses, and its gradients added to those that are there."""
        drawn: Any = self._parts.draw(generator)
        kind = drawn.kind()
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._willing and kind not in self._recordings and self._seen[kind] > FIRST:
            self._try_to_record(kind, drawn)
        if kind not in self._recordings:
            return self._gpu.run(lambda: self._learn(drawn))
        recording = self._recordings[kind]
        for place, tensor in zip(recording.places, drawn.tensors(), strict=True):
            place.copy_(tensor)
        recording.replay()
        return Losses(recording.losses.subject.clone(), recording.losses.prior.clone())

    def forget(self) -> None:
        """Something that recordings read has been replaced: record anew."""
        self._recordings.clear()

    def _learn(self, drawn: Any) -> Losses:
        with self._attached():
            losses = self._parts.compute(drawn)
            self._backward(losses)
        return Losses(losses.subject.detach(), losses.prior.detach())

    def _try_to_record(self, kind: Hashable, drawn: Any) -> None:
        try:
            losses, replay = self._gpu.record(lambda: self._learn(drawn))
        except RuntimeError as error:   # it waits for the device somewhere, or memory is short
            self._willing = False
            self._recordings.clear()
            logging.getLogger(__name__).warning("Steps can't be recorded here, so they run one by one: %s", error)
            return
        # The recording goes on reading this lesson's tensors.
        self._recordings[kind] = Recording(drawn.tensors(), losses, replay)


class Graphs:
    """Records by CUDA graphs, which share their memory, for only one is replayed at a time.

    Everything is on a stream of its own, as PyTorch's notes on CUDA graphs ask for what has a backward pass.
    """

    def __init__(self) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def run(self, work: Work) -> Losses:
        """Do it now."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def record(self, work: Work) -> tuple[Losses, Callable[[], None]]:
        """Do it later: what every replay will fill anew, and the replay."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            losses = work()
        return losses, graph.replay


def recordable(device: torch.device, config: TrainConfig, adapters: AdapterSet, group: ProcessGroup) -> bool:
    """Whether a run's microsteps are the same work on the same tensors every time.

    Not where a text encoder learns (captions would be read on the way), where adapters look at the timestep, where
    gradients are put in other tensors, nor with checkpointing, which asks for the state of the dice.
    """
    others = config.train_text_encoder or config.whole_gradient or config.gradient_checkpointing
    live = any(adapter.live for adapter in adapters)
    return device.type == "cuda" and group.size == 1 and not others and not live
