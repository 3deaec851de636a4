"""Latents → pictures: whole or with less memory, and never a picture of values that are not finite."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.diffusers_internals import vae_tiles
from atelier.training.sampling.draw_savings import TILE, DrawSavings


class NotFiniteError(ValueError):
    """A drawing whose values are not finite (NaN or infinite); the message says in which part, and the cure."""


def decode_latents(model: BaseModel, latents: Tensor, savings: DrawSavings = DrawSavings()) -> list[Image.Image]:
    """Latents ``[B, C, h, w]`` → pictures.

    A VAE in bfloat16 whose pixels are not finite decodes again in float32.

    Raises:
        NotFiniteError: latents or pixels are not finite.
    """
    if not latents.isfinite().all():
        name = str(model.dtype).removeprefix("torch.")
        other = "fp32" if model.dtype == torch.bfloat16 else "bf16"
        raise NotFiniteError(f"The UNet gave values that are not finite (NaN), so there is no picture. With some base "
                             f"models and adapters that happens in {name}: draw with --precision {other}, or with a "
                             "lower strength.")
    pixels = _decode(model, latents, savings)
    if savings.half_vae and not pixels.isfinite().all():
        pixels = _decode(model, latents, savings, half=False)
    if not pixels.isfinite().all():
        raise NotFiniteError("The VAE gave values that are not finite (NaN), so there is no picture. Fetch the base "
                             "model again, or use another one.")
    return model.pipeline.image_processor.postprocess(pixels)


def _decode(model: BaseModel, latents: Tensor, savings: DrawSavings, *, half: bool = True) -> Tensor:
    vae = model.half_vae if savings.half_vae and half else model.vae
    with model.on_device(vae), use_tiles(vae, model.info, savings.tiles):
        # The pipeline would hand them over in the UNet's dtype, not the VAE's.
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        parts = scaled.split(1 if savings.decode_singly else len(scaled))
        return torch.cat([vae.decode(part).sample for part in parts]).float()


def use_tiles(vae: Any, info: BaseInfo, tiles: bool) -> AbstractContextManager[None]:
    """With ``tiles``, let the VAE work in tiles of 512 pixels while this is open."""
    return vae_tiles(vae, TILE, TILE // info.vae_scale_factor) if tiles else nullcontext()
