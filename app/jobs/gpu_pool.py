"""A graphics card for each job, where a machine has several."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import LifoQueue

VISIBLE = "CUDA_VISIBLE_DEVICES"


class GpuPool:
    """Cards that jobs take and give back; of one card or none there is nothing to choose."""

    def __init__(self, cards: Sequence[str]) -> None:
        """Name each card as CUDA_VISIBLE_DEVICES does; the last one is taken first, since drawings use the first."""
        self.size = max(1, len(cards))   # jobs that can run at once
        self._free: LifoQueue[Mapping[str, str]] = LifoQueue()
        for environment in [{VISIBLE: card} for card in cards] if len(cards) > 1 else [{}]:
            self._free.put(environment)

    @contextmanager
    def card(self) -> Iterator[Mapping[str, str]]:
        """What the environment of a job's process must say, while it has its card."""
        environment = self._free.get()
        try:
            yield environment
        finally:
            self._free.put(environment)


def find_gpus() -> list[str]:
    """The cards that jobs can use here, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    query = ["nvidia-smi", "--query-gpu=uuid,compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [line.partition(", ")[::2] for line in lines if line.startswith("GPU-")]
    if len(found) < 2:
        return [card for card, _ in found]
    import torch  # a tenth of a gigabyte, which a worker of one card does without

    from atelier.training.base_models.device import runs_on

    built = torch.cuda.get_arch_list()
    return [card for card, capability in found if runs_on(_pair(capability), built)]


def _pair(capability: str) -> tuple[int, int]:
    """``8.6`` → 8, 6."""
    major, _, minor = capability.strip().partition(".")
    return int(major), int(minor or 0)
