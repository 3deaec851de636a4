"""Losses on given pictures, on the same noise for every adapter: measures that need no judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel
from atelier.training.data.buckets import crop_and_resize
from atelier.training.data.images import open_picture, to_tensor
from atelier.training.data.latent_cache import encode_pictures, encode_text, tokenize
from atelier.training.loop.health import NOISE_LEVELS
from atelier.training.loop.noise import add_noise

NOISES = 4   # at each timestep
BATCH = 16


def latents_of(model: BaseModel, paths: Sequence[Path]) -> Tensor:
    """Pictures, cut square and made as small as the base model draws, as scaled latents [N, C, h, w]."""
    side = (model.info.resolution, model.info.resolution)
    pictures = [to_tensor(crop_and_resize(open_picture(path), side)) for path in paths]
    sizes = [(side[0], side[1], 0, 0, side[0], side[1])] * len(pictures)
    return torch.stack([one.mean for one in encode_pictures(model, pictures, [""] * len(pictures), sizes)])


@torch.no_grad()
def losses(model: BaseModel, latents: Tensor, caption: str) -> Tensor:
    """Losses [pictures, timesteps × noises], on the same noise at every call."""
    count = model.scheduler.config.num_train_timesteps
    levels = [int(level * count) for level in NOISE_LEVELS for _ in range(NOISES)]
    clean = latents.repeat_interleave(len(levels), 0)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = add_noise(model.scheduler, clean, noise, torch.tensor(levels).repeat(len(latents)))
    side, found = model.info.resolution, []
    for start in range(0, len(clean), BATCH):
        part = slice(start, start + BATCH)
        size = len(clean[part])
        text = encode_text(model, tokenize(model, [caption] * size))
        sizes = [(side, side, 0, 0, side, side)] * size
        answer = model.predict(noisy.latents[part], noisy.timesteps[part], text, sizes)
        found.append((answer - noisy.target[part]).square().mean((1, 2, 3)))
    return torch.cat(found).view(len(latents), -1)
