"""Offloading parts of a base model that a step does not need: from a GPU to main memory, from there to disk."""

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
MIN_OFFLOAD_BYTES = 50_000_000   # a smaller part stays where it is


class Offload(Protocol):
    """A place for parts that are not needed now."""

    def holds(self, part: nn.Module) -> bool:
        """Whether a part is offloaded."""
        ...

    def offload(self, part: nn.Module) -> None:
        """Move a part of the pipeline away from the device that computes."""
        ...

    def onload(self, part: nn.Module, device: torch.device) -> None:
        """Bring an offloaded part back to ``device``, with the same weights."""
        ...


class CpuOffload:
    """Offloads from a GPU to main memory."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    def holds(self, part: nn.Module) -> bool:
        """Whether a part is offloaded."""
        return part.device.type == self._device.type   # type: ignore[union-attr]

    def offload(self, part: nn.Module) -> None:
        """Move a part to main memory."""
        _move(part, self._device)

    def onload(self, part: nn.Module, device: torch.device) -> None:
        """Copy a part from main memory to ``device``."""
        _move(part, device)


class DiskOffload:
    """Offloads from main memory to disk: an unnamed, memory-mapped file for each part, written once.

    A part can be used at any time: the kernel reads the pages that are accessed, and drops them when the part is
    offloaded again. Small parts stay where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[nn.Module, mmap.mmap] = {}

    def holds(self, part: nn.Module) -> bool:
        """Whether a part is offloaded."""
        return part in self._files

    def offload(self, part: nn.Module) -> None:
        """Offload a part; where the disk has no room for it, it stays in memory."""
        tensors = [*part.parameters(), *part.buffers()]
        if sum(tensor.nbytes for tensor in tensors) < MIN_OFFLOAD_BYTES:
            return
        if part not in self._files:
            try:
                self._files[part] = _mapped(tensors, self._folder)
            except OSError:
                return
            trim_memory()
        if hasattr(mmap, "MADV_DONTNEED"):   # Windows drops pages by itself, when memory is short
            self._files[part].madvise(mmap.MADV_DONTNEED)

    def onload(self, part: nn.Module, device: torch.device) -> None:
        """Nothing to do: the kernel reads pages as they are accessed."""


def _mapped(tensors: Iterable[Tensor], folder: Path) -> mmap.mmap:
    """Write tensors to a file, map it into memory, and make them views of it."""
    offsets: list[tuple[Tensor, int]] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for tensor in tensors:
            if tensor.numel():
                file.seek(-file.tell() % ALIGNED, 1)
                offsets.append((tensor, file.tell()))
                file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0)
    with torch.inference_mode(mode=False):   # weights made in inference mode could not be trained on
        for tensor, offset in offsets:
            values = torch.frombuffer(mapped, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
            tensor.data = values.view(tensor.shape)
    return mapped


def _move(part: nn.Module, device: torch.device) -> None:
    with torch.inference_mode(mode=False):   # weights moved in inference mode could not be trained on
        part.to(device)
