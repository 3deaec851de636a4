"""How much an adapter changes what the UNet predicts for a prompt, in units of what the prompt itself changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.latent_cache import encode_text, tokenize

TIMESTEPS = (0.999, 0.85, 0.7)   # as shares of the schedule: what a picture shows is decided early
SEED = 3000
BATCH = 4   # prompts that go through the UNet at once: fewer than a validation's pictures, whose memory is planned


@torch.no_grad()
def encode_prompts(model: BaseModel, prompts: Sequence[str]) -> list[PromptEmbeddings]:
    """Each prompt as the UNet reads it, with the text encoder as it is now."""
    with model.on_device(*model.text_encoders):
        return [encode_text(model, row[None]) for row in tokenize(model, list(prompts))]


@torch.no_grad()
def predict_prompts(
    model: BaseModel, texts: Sequence[PromptEmbeddings], timesteps: Sequence[float] = TIMESTEPS
) -> Tensor:
    """What the UNet, as it is now, predicts for each text on the same noise ``[prompts, timesteps, C, h, w]``."""
    return torch.cat([_predict(model, texts[i : i + BATCH], timesteps) for i in range(0, len(texts), BATCH)])


def relative_changes(base: Tensor, unconditional: Tensor, now: Tensor) -> Tensor:
    """‖now − base‖² / ‖base − unconditional‖² of each prompt.

    Args:
        base: predictions of the base model ``[prompts, …]``.
        unconditional: its predictions for the empty prompt ``[1, …]``.
        now: predictions with adapters ``[prompts, …]``.
    """
    change, scale = (now - base).square().flatten(1).mean(1), (base - unconditional).square().flatten(1).mean(1)
    return change / scale.clamp_min(1e-12)


def _predict(model: BaseModel, texts: Sequence[PromptEmbeddings], timesteps: Sequence[float]) -> Tensor:
    count, side = model.scheduler.config.num_train_timesteps, model.info.resolution
    latent_side = model.unet.config.sample_size
    shape = (1, model.unet.config.in_channels, latent_side, latent_side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(model.device)
    noise, sizes = noise.expand(len(texts), -1, -1, -1), [(side, side, 0, 0, side, side)] * len(texts)
    pooled = [text.pooled for text in texts if text.pooled is not None]
    joined = PromptEmbeddings(torch.cat([text.features for text in texts]), torch.cat(pooled) if pooled else None)
    return torch.stack([
        model.predict(noise, torch.full((len(texts),), int(share * count), device=noise.device), joined, sizes)
        .float().cpu() for share in timesteps
    ], dim=1)   # fmt: skip
