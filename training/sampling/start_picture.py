"""Drawings that start from a picture: image to image, inpainting, and a second pass at a larger size.

The picture's latents are noised to a timestep on the way and denoised from there (SDEdit, Meng et al. 2022,
arXiv 2108.01073). In inpainting, what is outside of the mask is put back, noised as far as the drawing is, after every
step (RePaint without its jumps, Lugmayr et al. 2022, arXiv 2201.09865), and in the end pixel for pixel. Both are what
diffusers' own pipelines compute, for any number of latent channels and any of the samplers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from atelier.adapters.core.settings import SettingError
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.diffusers_internals import skip_timesteps
from atelier.training.sampling.decode import use_tiles
from atelier.training.sampling.draw_savings import DrawSavings

FEATHER = 0.01   # of the longer side: how far the edge of a mask is blended


@dataclass(frozen=True, slots=True)
class StartPicture:
    """A picture to start from.

    `strength` 0 … 1 says how much of it may change: 1 keeps nothing but what a mask protects. `mask`, of the picture's
    size, is white where something new is drawn; without one it is drawn everywhere.
    """

    picture: Image.Image
    strength: float = 0.6
    mask: Image.Image | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise SettingError(f"The strength is {self.strength}, but it must be above 0 and at most 1.")
        if self.mask is not None and self.mask.size != self.picture.size:
            raise SettingError(
                f"The mask is {_size(self.mask)} and the picture {_size(self.picture)}, but they must have the same "
                "size."
            )


@dataclass(slots=True)
class StartLatents:
    """Latents to start from, and what is needed on the way.

    `latents` [B, C, h, w] of the picture, `noise` likewise, `strength` as in :class:`StartPicture`, `mask`
    [1, 1, h, w], 1 where something new is drawn, or None.
    """

    latents: Tensor
    noise: Tensor
    strength: float
    mask: Tensor | None = None
    steps: int = 0   # of this pass; 0 means as many as the request has
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0))   # those that are left, once it has begun

    def begin(self, sampler: Any, steps: int) -> Tensor:
        """Make a sampler start on the way and return the latents to hand to the pipeline.

        The pipeline asks for the timesteps later and multiplies by the sampler's first sigma; both are foreseen here.
        """
        skipped = max(steps - min(int(steps * self.strength), steps), 0) * sampler.order
        sampler.set_timesteps(steps)
        if skipped >= len(sampler.timesteps):
            raise SettingError(
                f"With {steps} steps and a strength of {self.strength}, nothing would be drawn. Increase one of them."
            )
        skip_timesteps(sampler, skipped)
        sampler.set_timesteps(steps)
        self.timesteps = sampler.timesteps
        if self.strength == 1:
            return self.noise   # the pipeline scales it
        noisy = sampler.add_noise(self.latents, self.noise, self.timesteps[:1].repeat(len(self.noise)))
        return noisy / sampler.init_noise_sigma

    def keep_outside(self, sampler: Any, step: int, latents: Tensor) -> Tensor:
        """Put back what the mask protects, noised as far as the drawing is after ``step``."""
        if self.mask is None:
            return latents
        following = self.timesteps[step + 1 : step + 2]
        kept = self.latents
        if len(following):
            kept = sampler.add_noise(kept, self.noise, following.repeat(len(self.noise)))
        return (1 - self.mask) * kept + self.mask * latents


def start_latents(
    model: BaseModel, start: StartPicture, width: int, height: int, noise: Tensor,
    savings: DrawSavings = DrawSavings(),
) -> StartLatents:   # fmt: skip
    """Encode a picture for a drawing of this size in pixels; ``noise`` [B, C, h, w] is on the model's device."""
    latents = encode_picture(model, fitted(start.picture, width, height), savings).to(noise.dtype)
    mask = None
    if start.mask is not None:
        white = fitted(start.mask.convert("L"), width, height)
        pixels = torch.from_numpy(np.array(white, dtype=np.float32) / 255)[None, None]
        mask = F.interpolate((pixels > 0.5).to(noise), size=noise.shape[-2:])   # whole latents, as in diffusers
    return StartLatents(latents.expand_as(noise), noise, start.strength, mask)


@torch.inference_mode()
def encode_picture(model: BaseModel, picture: Image.Image, savings: DrawSavings = DrawSavings()) -> Tensor:
    """A picture's latents [1, C, h, w] in the UNet's scale: the posterior's mean, so that nothing is left to chance."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with model.on_device(model.vae), use_tiles(model.vae, model.info, savings.tiles):
        posterior = model.vae.encode(pixels.to(model.vae.device, model.vae.dtype)).latent_dist
    return posterior.mode() * model.vae.config.scaling_factor


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture cut to the drawing's shape around its middle, and resized with Lanczos' filter."""
    if picture.size == (width, height):
        return picture
    scale = max(width / picture.width, height / picture.height)
    inner_width, inner_height = width / scale, height / scale
    left, top = (picture.width - inner_width) / 2, (picture.height - inner_height) / 2
    return picture.resize((width, height), Image.Resampling.LANCZOS,
                          box=(left, top, left + inner_width, top + inner_height))


def paste_outside(start: StartPicture, drawn: Image.Image) -> Image.Image:
    """Put the pixels that the mask protects back over a drawing; the edge is blended."""
    if start.mask is None:
        return drawn
    size = (drawn.width, drawn.height)
    mask = fitted(start.mask.convert("L"), *size).point([0] * 128 + [255] * 128)
    soft = mask.filter(ImageFilter.GaussianBlur(FEATHER * max(size)))
    # Blended inside the mask alone: outside of it nothing may change.
    inside = Image.composite(soft.point([max(0, 2 * value - 255) for value in range(256)]), Image.new("L", size), mask)
    return Image.composite(drawn, fitted(start.picture.convert("RGB"), *size), inside)


def _size(picture: Image.Image) -> str:
    return f"{picture.width}×{picture.height}"
