"""Fidelity: how an exported file compares with the adapter it was made from, on the base model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.read_foreign import read_foreign
from atelier.training.base_models.base_model import BaseModel
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.sample import DrawRequest, draw

TIMESTEPS = (801, 401, 101)   # early, middle and late in drawing


@dataclass(frozen=True)
class Fidelity:
    """How far the exported file is from the adapter."""

    unet_error: float       # ‖difference of the UNet's outputs‖ / ‖what the adapter changes in them‖
    before: Image.Image     # drawn with the adapter
    after: Image.Image      # drawn with the file, from the same noise


def compare(model: BaseModel, mix: Mix, exported: Path, prompt: str, cache: DrawCache | None = None) -> Fidelity:
    """Put the same prompts and noise through the adapters of ``mix`` and through the exported file.

    Raises:
        FileError: the file can't be read back.
        MountError: it does not fit the base model.
    """
    exported_mix = Mix(((read_foreign(exported)[0].to(model.device), 1.0),))
    request = DrawRequest(prompt=prompt)
    before, after = (draw(model, request, each, cache=cache)[0] for each in (mix, exported_mix))
    return Fidelity(unet_error(model, mix, exported_mix, prompt), before, after)


def unet_error(model: BaseModel, mix: Mix, other: Mix, prompt: str) -> float:
    """How far the UNet's outputs with one Mix are from those with another, relative to what the first Mix changes.

    Raises:
        MountError: one of them does not fit the base model.
    """
    base, first, second = (_outputs(model, each, prompt) for each in (Mix(), mix, other))
    change = torch.linalg.vector_norm(first - base).item()
    error = torch.linalg.vector_norm(second - first).item()
    return error / change if change else error


@torch.inference_mode()
def _outputs(model: BaseModel, mix: Mix, prompt: str) -> Tensor:
    """The UNet's outputs for fixed noise at a few timesteps, with the Mix mounted."""
    side = model.info.resolution // model.info.vae_scale_factor
    shape = (len(TIMESTEPS), model.unet.config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    sizes = [(model.info.resolution, model.info.resolution, 0, 0, model.info.resolution, model.info.resolution)]
    with mount(model.models(), mix):
        text = encode_text(model, tokenize(model, [prompt] * len(TIMESTEPS)))
        return model.predict(noise, torch.tensor(TIMESTEPS, device=model.device), text, sizes * len(TIMESTEPS)).float()
