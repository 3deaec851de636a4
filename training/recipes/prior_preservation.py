"""Prior preservation (DreamBooth, Ruiz et al. 2023, arXiv 2208.12242, sec. 3.3): the base keeps drawing other things.

    python -m atelier.training.recipes.prior_preservation     writes the embedded base's prior pictures to assets/base
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.config.caption_template import fill_template
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.sampling.decode import decode_latents
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import draw_latents
from atelier.training.sampling.start_picture import encode_picture, fitted

PRIOR_STEPS = 12   # denoising steps of a prior picture: it need not be beautiful, only typical of the base
MAX_PRIOR_BATCH = 8   # large pictures are drawn in smaller batches, which take no longer and less memory
UNCONDITIONAL_EVERY = 3   # so many prior pictures share one with an empty prompt: guidance subtracts what that gives
PRIOR_FILE = "prior.safetensors"
PRIOR_FILE_COUNT = 48


def draw_prior(model: BaseModel, config: TrainConfig) -> list[Example]:
    """Let the base model alone draw the prior pictures, in the size it was made for.

    They stay latents, and no VAE is needed, unless another size is trained. The embedded base comes with a file of
    them, drawn with seed 0.
    """
    prompts = prior_prompts(model, config)
    latents = _read_prior_file(model.info.folder / PRIOR_FILE, prompts)
    if latents is None:
        latents = _draw(model, prompts, config.seed)
    return drawn_examples(model, latents, prompts, config.resolution)


def drawn_examples(
    model: BaseModel, latents: Sequence[Tensor], captions: Sequence[str], resolution: int = 0
) -> list[Example]:
    """Pictures that the model drew, as training reads them: of the size that the subject's square pictures have.

    Args:
        model: the base model.
        latents: ``[C, h, w]`` each, in the size the model was made for.
        captions: one a picture.
        resolution: that is trained, in pixels; 0 means the model's own.
    """
    native, multiple = model.info.resolution, model.info.size_multiple
    side = (resolution or native) // multiple * multiple
    fitting = latents if side == native else [_resize(model, latent, side) for latent in latents]
    return [
        Example(latent, torch.zeros_like(latent), row, (native, native, 0, 0, side, side))
        for latent, row in zip(fitting, tokenize(model, list(captions)), strict=True)
    ]


def _resize(model: BaseModel, latent: Tensor, side: int) -> Tensor:
    """Latents in another size, by way of the pixels."""
    with torch.inference_mode(), model.on_device(model.vae):
        [picture] = decode_latents(model, latent[None].to(model.device), DrawSavings(tiles=True))
        resized = encode_picture(model, fitted(picture, side, side), DrawSavings(tiles=True))[0]
    return resized.cpu().float().clone()   # outside of inference mode: autograd reads it


def prior_prompts(model: BaseModel, config: TrainConfig) -> list[str]:
    """Prompts of prior pictures: the base's own list, else the subject's class alone; every third is empty."""
    own = model.info.prior_prompts
    if not own:
        template = config.caption or model.info.caption
        plain = template if "{subject}" in template else "{subject}"
        own = (" ".join(fill_template(plain, trigger="", subject=config.subject).split()),)
    conditional = (own[i % len(own)] for i in range(config.prior_count))
    last = UNCONDITIONAL_EVERY - 1
    return ["" if i % UNCONDITIONAL_EVERY == last else next(conditional) for i in range(config.prior_count)]


def write_prior_file(model: BaseModel, path: Path) -> None:
    """Draw and write the pictures that :func:`draw_prior` then reads instead of drawing."""
    prompts = prior_prompts(model, TrainConfig(prior_count=PRIOR_FILE_COUNT))
    latents = torch.stack(_draw(model, prompts, seed=0)).half()
    save_file({"latents": latents}, path, {"prompts": json.dumps(prompts)})


def _draw(model: BaseModel, prompts: list[str], seed: int) -> list[Tensor]:
    size = prior_batch_size(model.info.resolution)
    return [
        latent
        for first in range(0, len(prompts), size)
        for latent in draw_latents(model, prompts[first : first + size], steps=PRIOR_STEPS, seed=seed + first)
    ]


def prior_batch_size(side: int) -> int:
    """How many pictures with this side, in pixels, are drawn at once: two of Stable Diffusion 1.x, one of XL."""
    return max(1, min(MAX_PRIOR_BATCH, 2 * (512 // side) ** 2))


def _read_prior_file(path: Path, prompts: list[str]) -> list[Tensor] | None:
    """The first of the file's latents, if they were drawn from these prompts."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        drawn_from = json.loads(file.metadata()["prompts"])[: len(prompts)]
        return list(file.get_tensor("latents")[: len(prompts)].float()) if drawn_from == prompts else None


if __name__ == "__main__":
    write_prior_file(load(EMBEDDED, "cpu"), EMBEDDED_FOLDER / PRIOR_FILE)
