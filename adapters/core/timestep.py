"""How far denoising has come, for adapters that are not the same at every timestep."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

TIMESTEPS = 1000   # of every Stable Diffusion's noise schedule


class TimestepTracker(nn.Module):
    """Shared by the adapters of one set; ``mount.mount`` lets it see the UNet's timestep before every call."""

    def __init__(self) -> None:
        super().__init__()
        self._timestep = torch.tensor(float(TIMESTEPS))
        self._progress: float | None = None
        self.has_seen_timestep = False
        self.batch_progress = torch.zeros(1)   # the same for each picture of the batch, or once for all of them

    @property
    def progress(self) -> float:
        """0: pure noise, towards 1: the finished picture. The first look waits for the device of the timestep."""
        if self._progress is None:
            self._progress = 1 - self._timestep.max().item() / TIMESTEPS
        return self._progress

    def read_timestep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:   # noqa: ARG002 (a hook)
        """Read the timestep of a UNet's call; of a batch with several, the noisiest counts."""
        self._timestep = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1])
        self._progress, self.has_seen_timestep = None, True
        self.batch_progress = 1 - self._timestep.float().reshape(-1) / TIMESTEPS
