"""Latent previews: a small picture while it is drawn, latents → RGB by one linear map in place of the VAE.

A pixel of latents nearly determines the colour of the picture there: [R G B] = [z 1] · M with M of (C + 1) × 3 numbers,
fitted by least squares to what the model's own VAE makes of the example pictures. ComfyUI and A1111 have such factors
written down for some families; here they are fitted for any VAE, in the time of one or two of its calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.assets import ASSETS

EXAMPLES = ASSETS / "examples"
SIDE = 8     # pixels of latents a side: enough for so few numbers, and a large VAE is slow
UPSCALING = 4    # pixels a side of the preview for a pixel of latents, interpolated


@dataclass(frozen=True, slots=True)
class LatentPreview:
    """The linear map of one VAE."""

    matrix: Tensor   # [C + 1, 3], the last row is the constant

    def to_rgb(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` in the UNet's scale → RGB ``[B, h, w, 3]`` in −1 … 1, and a little beyond."""
        rows = latents.float().cpu().permute(0, 2, 3, 1)
        return rows @ self.matrix[:-1] + self.matrix[-1]

    def to_pictures(self, latents: Tensor) -> list[Image.Image]:
        """Latents ``[B, C, h, w]`` → a small picture each."""
        bytes_ = ((self.to_rgb(latents) / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
        small = [Image.fromarray(one) for one in bytes_]
        return [one.resize((UPSCALING * one.width, UPSCALING * one.height), Image.Resampling.BICUBIC) for one in small]


@torch.inference_mode()
def fit_latent_preview(model: BaseModel) -> LatentPreview:
    """Fit the map of a model's VAE: one picture of each example in three colourings, 8×8 pixels of latents each."""
    side = SIDE * model.info.vae_scale_factor
    pictures = torch.stack([_read(path, side) for path in sorted(EXAMPLES.glob("*/*_01.*g"))])
    # With the colour channels rotated as well: so few pictures fit as well as many.
    pictures = torch.cat([pictures.roll(turn, 1) for turn in range(3)])
    with model.on_device(model.vae):
        means = [model.vae.encode(one[None].to(model.vae.device)).latent_dist.mean for one in pictures]
    latents = torch.cat(means).cpu() * model.vae.config.scaling_factor
    rows = torch.cat([latents, torch.ones_like(latents[:, :1])], 1).permute(0, 2, 3, 1).flatten(0, 2)
    colours = F.avg_pool2d(pictures, model.info.vae_scale_factor).permute(0, 2, 3, 1).flatten(0, 2)
    return LatentPreview(torch.linalg.lstsq(rows.double(), colours.double()).solution.float())


def _read(path: Path, side: int) -> Tensor:
    """A picture ``[3, side, side]`` in −1 … 1."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1) / 127.5 - 1
