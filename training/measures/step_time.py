"""How long a base model takes for the work of a training step, measured where no training has shown it yet."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from atelier.training.base_models.base_model import BaseModel
from atelier.training.data.latent_cache import encode_text, tokenize

_REPEATED = 3


def seconds_per_picture(model: BaseModel, pictures: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds for one picture's way through the UNet and back, in a batch of so many at the model's own size.

    Gradients go back to the noise, through every layer, as those of an adapter do. The least of three counts: whatever
    else the machine does can only make it longer.
    """
    side, count = model.info.resolution, model.scheduler.config.num_train_timesteps
    latents = model.unet.config.sample_size
    with torch.no_grad(), model.on_device(*model.text_encoders):
        text = encode_text(model, tokenize(model, [""] * pictures))
    noise = torch.randn(pictures, model.unet.config.in_channels, latents, latents, device=model.device,
                        dtype=model.dtype, requires_grad=True)   # fmt: skip
    timesteps = torch.full((pictures,), count // 2, device=model.device)

    def step() -> float:
        """Seconds of one step."""
        started = clock()
        predicted = model.predict(noise, timesteps, text, [(side, side, 0, 0, side, side)] * pictures)
        loss = predicted.float().square().mean()
        torch.autograd.grad(loss, noise)[0].sum().item()   # the sum waits for a card
        return clock() - started

    with torch.enable_grad():
        return min(step() for _ in range(_REPEATED)) / pictures
