"""CUDA graphs: a microstep is recorded once and replayed, so that its thousands of kernel launches become a single one.

What a small batch costs on a fast GPU is launching kernels, not computing. The first microsteps of every kind of batch
run as always, then one is recorded: forward pass, losses and backward pass, on tensors that stay where they are. From
then on each new batch is copied there and the recording replayed. The optimizer's few launches stay outside, so that
every optimizer, clipping and gradient correction works as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from atelier.adapters.kinds.catalog import get_kind
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.distributed import ProcessGroup
from atelier.training.loop.recipe import Losses, Recipe

WARMUP_MICROSTEPS = 3   # of one signature before it is recorded: libraries choose their algorithms in these
Work = Callable[[], Losses]


class GraphBackend(Protocol):
    """Runs work, and records it for replays."""

    def run(self, work: Work) -> Losses:
        """Do the work at once, on the stream that recordings use too."""
        ...

    def record(self, work: Work) -> tuple[Losses, Callable[[], None]]:
        """Record the work without doing it: the tensors that every replay fills anew, and the replay.

        Raises:
            RuntimeError: the work can't be recorded.
        """
        ...


@dataclass(frozen=True, slots=True)
class RecordedGraph:
    """A recorded microstep: tensors to copy a batch into, tensors that hold its losses, and the replay."""

    inputs: list[Tensor]   # what it reads; a new batch is copied here
    losses: Losses         # what it writes
    replay: Callable[[], None]


class GraphRecorder:
    """Runs microsteps with their backward pass; gradients add up in tensors that must stay the same."""

    def __init__(self, recipe: Recipe, backward: Callable[[Losses], None], gpu: GraphBackend) -> None:
        assert recipe.stages is not None
        self._stages, self._mount = recipe.stages, recipe.mount
        self._backward, self._gpu = backward, gpu
        self._counts: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, RecordedGraph] = {}
        self._enabled = True

    def __call__(self, generator: torch.Generator) -> Losses:
        """Run one microstep: returns its losses, and adds its gradients to those that are there."""
        inputs: Any = self._stages.prepare(generator)
        signature = inputs.signature()
        self._counts[signature] = self._counts.get(signature, 0) + 1
        if self._enabled and signature not in self._graphs and self._counts[signature] > WARMUP_MICROSTEPS:
            self._try_to_record(signature, inputs)
        if signature not in self._graphs:
            return self._gpu.run(lambda: self._forward_and_backward(inputs))
        graph = self._graphs[signature]
        for target, tensor in zip(graph.inputs, inputs.tensors(), strict=True):
            target.copy_(tensor)
        graph.replay()
        return Losses(graph.losses.subject.clone(), graph.losses.prior.clone())

    def reset(self) -> None:
        """Drop all recordings, because a tensor that they read has been replaced."""
        self._graphs.clear()

    def _forward_and_backward(self, inputs: Any) -> Losses:
        with self._mount():
            losses = self._stages.compute(inputs)
            self._backward(losses)
        return Losses(losses.subject.detach(), losses.prior.detach())

    def _try_to_record(self, signature: Hashable, inputs: Any) -> None:
        try:
            losses, replay = self._gpu.record(lambda: self._forward_and_backward(inputs))
        except RuntimeError as error:   # it waits for the device somewhere, or memory is short
            self._enabled = False
            self._graphs.clear()
            logging.getLogger(__name__).warning("CUDA graphs can't be used here, so steps run one by one: %s", error)
            return
        # Every replay reads the tensors of the batch it was recorded with.
        self._graphs[signature] = RecordedGraph(inputs.tensors(), losses, replay)


class CudaGraphs:
    """Records with CUDA graphs, which share their memory, for only one is replayed at a time.

    Everything is on a stream of its own, as PyTorch's notes on CUDA graphs ask for what has a backward pass.
    """

    def __init__(self) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def run(self, work: Work) -> Losses:
        """Do the work now, on the recording stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def record(self, work: Work) -> tuple[Losses, Callable[[], None]]:
        """Record the work without doing it: the tensors that every replay fills anew, and the replay."""
        torch.cuda.empty_cache()   # what the steps before have left belongs to another pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            losses = work()
        return losses, graph.replay


def can_record(device: torch.device, config: TrainConfig, group: ProcessGroup) -> bool:
    """Whether a run's microsteps are recorded: on an NVIDIA GPU of its own."""
    return device.type == "cuda" and group.size == 1 and is_repeatable(config)


def is_repeatable(config: TrainConfig) -> bool:
    """Whether a run's microsteps may be recorded: they are the same work on the same tensors every time.

    They are not where a text encoder is trained (captions are encoded in the step), where adapters depend on the
    timestep, where gradients are put in other tensors or dropped (LISA), nor with checkpointing, which saves and
    restores the state of the random generator.
    """
    others = config.train_text_encoder or config.whole_gradient or config.gradient_checkpointing
    others = others or config.optimizer == "lisa"
    kind = get_kind(config.kind)
    return config.record == "auto" and not others and kind.recordable and not kind.live
