"""The forward process: clean latents, noise and a timestep → what the UNet sees and what it should answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Noisy:
    """One batch as the UNet sees it."""

    latents: Tensor     # [B, C, h, w] noisy
    timesteps: Tensor   # [B] int64
    target: Tensor      # [B, C, h, w] the right answer in the model's prediction type


def add_noise(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noisy:
    """Noise clean ``latents [B, C, h, w]`` to ``timesteps [B]`` and give the target of the prediction type.

    Raises:
        ValueError: a prediction type other than epsilon, v_prediction and sample.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    match scheduler.config.prediction_type:
        case "epsilon":
            target = noise
        case "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        case "sample":
            target = latents
        case other:
            raise ValueError(f"prediction type {other!r} is not supported; use epsilon, v_prediction or sample")
    return Noisy(noisy, timesteps, target)


def draw_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` timesteps in 0 … total − 1, evenly spread over the range with one random offset.

    Each is uniform by itself; together they cover early and late timesteps in every batch, which lowers the
    variance of the gradient at no cost.
    """
    offset = torch.rand(1, generator=generator)
    spread = (offset + torch.arange(count) / count) % 1
    return (spread * total).long()
