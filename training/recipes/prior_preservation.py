"""Prior preservation (DreamBooth, Ruiz et al. 2023, arXiv 2208.12242, sec. 3.3): what must stay as the base draws it.

    python -m atelier.training.recipes.prior_preservation     writes the embedded base's prior pictures to assets/base
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.sampling.sample import draw_latents

STEPS = 12   # denoising steps of a prior picture: it need not be beautiful, only typical of the base
BATCH = 8   # at most: large pictures are drawn in smaller batches, which take no longer and less memory
WORDLESS = 3   # every third is drawn without words, since guidance subtracts what the model draws without words
SHIPPED = "prior.safetensors"
SHIPPED_COUNT = 48


def draw_prior(model: BaseModel, config: TrainConfig) -> list[Example]:
    """Let the untouched base model draw the prior pictures; they stay latents, no VAE is needed.

    The embedded base brings its own along, drawn with seed 0.
    """
    prompts = prior_prompts(model, config)
    latents = _shipped(model.info.folder / SHIPPED, prompts)
    if latents is None:
        latents = _draw(model, prompts, config.seed)
    side = model.info.resolution
    return [
        Example(latent, torch.zeros_like(latent), row, (side, side, 0, 0, side, side))
        for latent, row in zip(latents, tokenize(model, prompts), strict=True)
    ]


def prior_prompts(model: BaseModel, config: TrainConfig) -> list[str]:
    """Prompts of what must stay as it is: the base's own list, else the subject's class alone; some without words."""
    own = model.info.prior_prompts
    if not own:
        template = config.caption or model.info.caption
        words = fill(template, "", config.subject) if "{subject}" in template else config.subject
        own = (" ".join(words.split()),)
    worded = (own[i % len(own)] for i in range(config.prior_count))
    return ["" if i % WORDLESS == WORDLESS - 1 else next(worded) for i in range(config.prior_count)]


def fill(template: str, trigger: str, subject: str) -> str:
    """Put trigger word and subject into a caption template."""
    return template.replace("{trigger}", trigger).replace("{subject}", subject)


def write_shipped(model: BaseModel, path: Path) -> None:
    """Draw and write the pictures that :func:`draw_prior` then reads instead of drawing."""
    prompts = prior_prompts(model, TrainConfig(prior_count=SHIPPED_COUNT))
    latents = torch.stack(_draw(model, prompts, seed=0)).half()
    save_file({"latents": latents}, path, {"prompts": json.dumps(prompts)})


def _draw(model: BaseModel, prompts: list[str], seed: int) -> list[Tensor]:
    at_once = batch_size(model.info.resolution)
    starts = range(0, len(prompts), at_once)
    return [
        latent
        for first in starts
        for latent in draw_latents(model, prompts[first : first + at_once], steps=STEPS, seed=seed + first)
    ]


def batch_size(side: int) -> int:
    """How many pictures with this side, in pixels, are drawn at once: two of Stable Diffusion 1.x, one of XL."""
    return max(1, min(BATCH, 2 * (512 // side) ** 2))


def _shipped(path: Path, prompts: list[str]) -> list[Tensor] | None:
    """The first of the shipped latents, if they are what the prompts ask for."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        known = json.loads(file.metadata()["prompts"])
        return list(file.get_tensor("latents")[: len(prompts)].float()) if known[: len(prompts)] == prompts else None


if __name__ == "__main__":
    write_shipped(load(EMBEDDED, "cpu"), EMBEDDED_FOLDER / SHIPPED)
