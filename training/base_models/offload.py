"""Where parts of a base model wait that a step does not need: beside a GPU in the main memory, else on the disk."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from atelier.training.base_models.malloc_tuning import trim_memory

ALIGNED = 64   # bytes: where a tensor may begin in a file
MIN_OFFLOAD_BYTES = 50_000_000   # bytes of a part


class Offload(Protocol):
    """A place for parts that wait."""

    def holds(self, part: nn.Module) -> bool:
        """Whether a part waits there."""
        ...

    def offload(self, part: nn.Module) -> None:
        """Let a part wait there."""
        ...

    def onload(self, part: nn.Module, device: torch.device) -> None:
        """Have it back on a device, ready to work."""
        ...


class CpuOffload:
    """For parts whose place is a GPU."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    def holds(self, part: nn.Module) -> bool:
        """Whether a part waits there."""
        return part.device.type == self._device.type   # type: ignore[union-attr]

    def offload(self, part: nn.Module) -> None:
        """Let a part wait there."""
        _move(part, self._device)

    def onload(self, part: nn.Module, device: torch.device) -> None:
        """Have it back on a device, ready to work."""
        _move(part, device)


class DiskOffload:
    """For parts whose place is the main memory: a nameless file for each, read by the kernel as it is looked at.

    Written once. A part is always ready to work: what it looks at comes into memory, and goes again when it rests.
    Small parts stay where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[nn.Module, mmap.mmap] = {}

    def holds(self, part: nn.Module) -> bool:
        """Whether a part waits there."""
        return part in self._files

    def offload(self, part: nn.Module) -> None:
        """Let a part wait there; where the disk has no room for it, it stays in memory."""
        tensors = [*part.parameters(), *part.buffers()]
        if sum(tensor.nbytes for tensor in tensors) < MIN_OFFLOAD_BYTES:
            return
        if part not in self._files:
            try:
                self._files[part] = _mapped(tensors, self._folder)
            except OSError:
                return
            trim_memory()
        if hasattr(mmap, "MADV_DONTNEED"):   # Windows lets go by itself, when memory is short
            self._files[part].madvise(mmap.MADV_DONTNEED)

    def onload(self, part: nn.Module, device: torch.device) -> None:
        """Nothing to do."""


def _mapped(tensors: Iterable[Tensor], folder: Path) -> mmap.mmap:
    """Write tensors to a file and let them be what is in it."""
    places: list[tuple[Tensor, int]] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for tensor in tensors:
            if tensor.numel():
                file.seek(-file.tell() % ALIGNED, 1)
                places.append((tensor, file.tell()))
                file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0)
    with torch.inference_mode(mode=False):   # weights made in inference mode could not be trained on
        for tensor, place in places:
            values = torch.frombuffer(mapped, dtype=tensor.dtype, count=tensor.numel(), offset=place)
            tensor.data = values.view(tensor.shape)
    return mapped


def _move(part: nn.Module, device: torch.device) -> None:
    with torch.inference_mode(mode=False):   # weights moved in inference mode could not be trained on
        part.to(device)
