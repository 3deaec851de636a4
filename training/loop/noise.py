"""The forward process: clean latents, noise and a timestep → the UNet's input and the target of its prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NoisyLatents:
    """Noised latents with their timesteps, and what the UNet should predict."""

    latents: Tensor     # [B, C, h, w] noisy
    timesteps: Tensor   # [B] int64
    target: Tensor      # [B, C, h, w] in the model's prediction type


def add_noise(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> NoisyLatents:
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
    return NoisyLatents(noisy, timesteps, target)


def sample_noise(latents: Tensor, generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Gaussian noise for ``latents [C, h, w]``, on the CPU.

    With an offset each channel as a whole is moved as well, by a Gaussian of this deviation. Noise alone hardly
    changes a channel's mean, so without it a model learns that every picture is of middle brightness (Guttenberg,
    "Diffusion with offset noise", 2023).
    """
    noise = torch.randn(latents.shape, generator=generator)
    return noise + offset * torch.randn(len(latents), 1, 1, generator=generator) if offset else noise


def sample_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Sample ``count`` timesteps in 0 … total − 1, evenly spread over the range with one random offset.

    Each is uniform by itself; together they cover early and late timesteps in every batch, which lowers the
    variance of the gradient at no cost.
    """
    offset = torch.rand(1, generator=generator)
    spread = (offset + torch.arange(count) / count) % 1
    return (spread * total).long()
