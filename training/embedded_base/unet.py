"""UNet and text encoder of the embedded base, trained together from cached latents.

The v-prediction loss of Salimans & Ho 2022 (arXiv 2202.00512), all timesteps weighted alike: min-SNR weights
would silence exactly the noisy half of the timesteps, where the text decides what the object is.
"""

# diffusers and transformers annotate their own constructors too narrowly (tuple[int] for tuples of any length).
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from atelier.training.embedded_base.ema_trainer import EmaTrainer, Schedule, StepResult, step_generator
from atelier.training.embedded_base.pictures import EmojiPictures
from atelier.training.embedded_base.text import TOKENS, pair_caption, token_ids, varied_caption
from atelier.training.embedded_base.vae import LATENT_CHANNELS, LATENT_SIDE, Latents
from atelier.training.embedded_base.views import COLOURS

TEXT_WIDTH = 192
CAPTION_DROP = 0.1
Writer = Callable[[Sequence[int], int], list[list[int]]]
"""(views to describe, step) → token ids."""


@dataclass(slots=True)
class Parts:
    """What a StableDiffusionPipeline is made of."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel


def new_scheduler() -> DDIMScheduler:
    """The noise schedule: v-prediction, and nearly no signal left at the last timestep, so colours can be obeyed."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet of 11.3 M parameters, with cross-attention at every size: 16×16 decides what stands where."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 6),  # diffusers reads these as the numbers of heads
    )


def with_attention_everywhere(old: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet as `new_unet` makes them that answers as `old` does, which had no cross-attention at 16×16.

    What is new projects to zero, so it says nothing until it has learned. Raises ValueError for another shape.
    """
    unet = new_unet()
    missing, unexpected = unet.load_state_dict(old.state_dict(), strict=False)
    if unexpected:
        raise ValueError(
            f"this UNet has layers that the embedded base model does not have: {', '.join(unexpected[:3])}"
        )
    for name in {key.split(".transformer_blocks")[0] for key in missing if ".transformer_blocks" in key}:
        projection = unet.get_submodule(f"{name}.proj_out")
        assert isinstance(projection, nn.Conv2d | nn.Linear) and projection.bias is not None
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    return unet


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of 2.2 M parameters, as long as the tokenizer's captions."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def batch_of(step: int, size: int, count: int, seed: int) -> Tensor:
    """Indices of the views of one step: epochs of a permutation each, a function of the step alone."""
    epoch, place = divmod(step, count // size)
    order = torch.randperm(count, generator=step_generator(seed + 1, epoch))
    return order[place * size : (place + 1) * size]


def velocity_loss(parts: Parts, scheduler: DDIMScheduler, z: Tensor, ids: Tensor, random: torch.Generator) -> Tensor:
    """Mean squared error of the predicted velocity, the timesteps spread evenly over the batch; `z` [B, 8, 16, 16]."""
    steps, count = len(scheduler.alphas_cumprod), len(z)
    places = (torch.arange(count) + torch.rand(count, generator=random)) / count
    timesteps = (places * steps).long().clamp(max=steps - 1).to(z.device)
    noise = torch.randn(z.shape, generator=random).to(z.device)
    noisy = scheduler.add_noise(z, noise, timesteps)
    velocity = scheduler.get_velocity(z, noise, timesteps)
    words = parts.text_encoder(ids).last_hidden_state
    predicted = parts.unet(noisy, timesteps, words).sample
    return (predicted.float() - velocity).square().mean()


def train_unet(
    trainer: EmaTrainer,
    parts: Parts,
    latents: Latents,
    write: Writer,
    schedule: Schedule,
    *,
    batch: int,
    seed: int,
    bf16: bool = False,
) -> Iterator[StepResult]:
    """Train UNet and text encoder together until the schedule ends; yields every step.

    `bf16` multiplies in bfloat16 (autocast; weights, optimizer and loss stay in float32).
    """
    if len(latents.z) < batch:
        raise ValueError(f"a batch of {batch} needs at least as many views; {len(latents.z)} are cached")
    scheduler, device = new_scheduler(), parts.unet.device
    while schedule.progress(trainer.step, trainer.seconds) < 1:
        step = trainer.step
        chosen = batch_of(step, batch, len(latents.z), seed)
        ids = torch.tensor(write(chosen.tolist(), step), device=device)
        z = latents.z[chosen].float().to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = velocity_loss(parts, scheduler, z, ids, step_generator(seed, step))
        lr = schedule.rate(step, trainer.seconds)
        trainer.update(loss, lr)
        yield StepResult(trainer.step, float(loss.detach()), lr, trainer.seconds)


def caption_writer(
    tokenizer: CLIPTokenizer, latents: Latents, pictures: EmojiPictures, words: dict[str, Any]
) -> Writer:
    """Captions for cached views, worded anew each time; the same step always gets the same words."""
    names = [[name] for name in pictures.names]
    for everyday, official in words["also"].items():
        names[pictures.names.index(official)].append(everyday)
    backgrounds = list(COLOURS)

    def describe(view: int, rng: random.Random) -> str:
        """The caption of one cached view."""
        style, background = pictures.styles[int(latents.style[view])], backgrounds[int(latents.background[view])]
        things, right = names[int(latents.concept[view])], int(latents.right[view])
        if right < 0:
            return varied_caption(things, style, background, CAPTION_DROP, rng)
        return pair_caption(rng.choice(things), rng.choice(names[right]), style, background, CAPTION_DROP, rng)

    def write(views: Sequence[int], step: int) -> list[list[int]]:
        """Token ids of the captions of a step's views."""
        rng = random.Random(step)
        captions = [describe(view, rng) for view in views]
        return token_ids(tokenizer, captions)

    return write
