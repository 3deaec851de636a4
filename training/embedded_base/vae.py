"""The autoencoder of the embedded base: training it, normalising its latents, caching them.

64×64 pixels become 16×16 latents of 8 channels; 4 channels lose too much at this size (linear PCA: 21.3 dB
against 25.8 dB for 8). `enlarge.py` makes of it the autoencoder of 128×128 pixels that the base model has.
"""

# diffusers and transformers annotate their own constructors too narrowly (tuple[int] for tuples of any length).
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.training.embedded_base.ema_trainer import EmaTrainer, Schedule, StepResult, step_generator
from atelier.training.embedded_base.pictures import EmojiPictures
from atelier.training.embedded_base.views import (
    COLOURS,
    Placement,
    colour,
    on_background,
    place,
    place_pair,
    premultiplied,
    random_colours,
)

LATENT_CHANNELS, LATENT_SIDE = 8, 16
LOG_VARIANCE = -12.0
LATENT_NOISE = 0.08
"""Added to latents while training, so that the decoder forgives small errors of the UNet."""
COLOURED = 0.45
"""Share of cached views with a background that is not white."""
PLACEMENT = Placement(smallest=0.75, shift=0.06)
PAIR_EVERY = 4
"""Of so many cached views one shows two things."""


@dataclass(frozen=True, slots=True)
class Latents:
    """Cached views: `z` [N, 8, 16, 16] half precision, already scaled; per view the style, object, background.

    `right` is the object at the right of a view that shows two, else -1.
    """

    z: Tensor
    style: Tensor
    concept: Tensor
    background: Tensor
    right: Tensor


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder of 0.93 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def varied_pixels(
    pictures: EmojiPictures, styles: int, concepts: np.ndarray, count: int, random: torch.Generator
) -> Tensor:
    """A batch to reconstruct, [count, 3, H, W] in −1 … 1: any background, and colours no emoji has.

    A tenth is grey, a twelfth black and white, a tenth has its channels exchanged: the autoencoder must also
    serve the styles and pictures that adapters bring later.
    """
    style = torch.randint(styles, (count,), generator=random).numpy()
    concept = concepts[torch.randint(len(concepts), (count,), generator=random).numpy()]
    pixels = place(premultiplied(pictures.rgba[style, concept]), Placement(smallest=0.7, shift=0.1), random)
    plain = (torch.rand(count, generator=random) < 0.6)[:, None]
    view = on_background(pixels, torch.where(plain, 1.0, torch.rand(count, 3, generator=random)))
    fate = torch.rand(count, generator=random)[:, None, None, None]
    grey = view.mean(1, keepdim=True).expand_as(view)
    view = torch.where(fate < 0.10, grey, view)
    view = torch.where((fate >= 0.10) & (fate < 0.18), (grey > 0.5).float(), view)
    view = torch.where((fate >= 0.18) & (fate < 0.28), view[:, torch.randperm(3, generator=random)], view)
    flip = torch.rand(count, generator=random)[:, None, None, None] < 0.5
    return torch.where(flip, view.flip(-1), view) * 2 - 1


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) over 7×7 windows, means as weights, pictures in 0 … 1: a map, 1 where equal."""

    def mean(values: Tensor) -> Tensor:
        """Over every 7×7 window."""
        return F.avg_pool2d(values, 7, stride=1)

    mean_1, mean_2 = mean(first), mean(second)
    variance_1, variance_2 = mean(first**2) - mean_1**2, mean(second**2) - mean_2**2
    covariance = mean(first * second) - mean_1 * mean_2
    likeness = (2 * mean_1 * mean_2 + 0.01) * (2 * covariance + 0.03)
    return likeness / ((mean_1**2 + mean_2**2 + 0.01) * (variance_1 + variance_2 + 0.03))


def reconstruction_loss(autoencoder: AutoencoderKL, pixels: Tensor, random: torch.Generator) -> Tensor:
    """`picture_error`, with a feather's weight on small latents and a fixed variance."""
    (posterior,) = autoencoder.encode(pixels, return_dict=False)
    noise = torch.randn(posterior.mean.shape, generator=random).to(pixels.device)
    (decoded,) = autoencoder.decode(posterior.mean + LATENT_NOISE * noise, return_dict=False)
    penalty = 0.5 * posterior.mean.square().mean() + 0.01 * (posterior.logvar + 5).square().mean()
    return picture_error(pixels, decoded) + 1e-4 * penalty


def picture_error(pixels: Tensor, decoded: Tensor) -> Tensor:
    """L1 + ½ gradient L1 + SSIM between pictures and what came back, both in −1 … 1."""
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    likeness = structural_similarity((pixels + error) / 2 + 0.5, pixels / 2 + 0.5).mean()
    return error.abs().mean() + 0.5 * edges + 0.1 * (1 - likeness)


def train_autoencoder(
    trainer: EmaTrainer, pictures: EmojiPictures, concepts: np.ndarray, styles: int, schedule: Schedule, seed: int
) -> Iterator[StepResult]:
    """Train until the schedule ends; yields every step.

    The error stays at 17–19 dB for minutes and improves only as the learning rate falls: do not stop early.
    """
    autoencoder = trainer.modules["vae"]
    assert isinstance(autoencoder, AutoencoderKL)
    while (progress := schedule.progress(trainer.step, trainer.seconds)) < 1:
        random = step_generator(seed, trainer.step)
        pixels = varied_pixels(pictures, styles, concepts, 16 if progress < 0.7 else 32, random)
        pixels = pixels.to(autoencoder.device, memory_format=torch.channels_last)
        loss = reconstruction_loss(autoencoder, pixels, random)
        lr = schedule.rate(trainer.step, trainer.seconds)
        trainer.update(loss, lr)
        yield StepResult(trainer.step, float(loss.detach()), lr, trainer.seconds)


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Fold (z − mean) / deviation, [8] each, into the two 1×1 convolutions around the latents.

    Pipelines apply one scaling factor to all channels; with this it can be 1 and every channel is standard.
    What the autoencoder reconstructs does not change.
    """
    into, out = autoencoder.quant_conv, autoencoder.post_quant_conv
    assert isinstance(into, nn.Conv2d) and isinstance(out, nn.Conv2d) and into.bias is not None and out.bias is not None
    into.weight[: len(mean)] /= deviation[:, None, None, None]
    into.bias[: len(mean)] = (into.bias[: len(mean)] - mean) / deviation
    into.bias[len(mean) :] -= 2 * deviation.log()  # these channels are log variances
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    autoencoder.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def fix_deviation(autoencoder: AutoencoderKL) -> None:
    """Make the posterior next to exact: deviation e⁻⁶ whatever the picture.

    Nothing in the loss above teaches a deviation that means anything, and the UNet learns from the means. Left alone,
    the encoder names 0.12 (in the UNet's scale), which blurs what an adapter learns from.
    """
    into = autoencoder.quant_conv
    assert isinstance(into, nn.Conv2d) and into.bias is not None
    means = len(into.bias) // 2
    into.weight[means:] = 0
    into.bias[means:] = LOG_VARIANCE


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in 0 … 1 → scaled latents [B, 8, 16, 16], the posterior's mean.

    Pictures of another side than the autoencoder's are brought to it.
    """
    side = autoencoder.config["sample_size"]
    if pixels.shape[-1] != side:
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    pixels = (pixels * 2 - 1).to(autoencoder.device)
    (posterior,) = autoencoder.encode(pixels, return_dict=False)
    return posterior.mean * autoencoder.config["scaling_factor"]


def cache_latents(
    autoencoder: AutoencoderKL, pictures: EmojiPictures, concepts: np.ndarray, styles: int, views: int, seed: int
) -> Latents:
    """Encode `views` views of every object in the first `styles` styles; in every fourth another stands beside it."""
    autoencoder = autoencoder.eval()
    names = list(COLOURS)
    palette = torch.stack([colour(name) for name in names])
    parts: list[Latents] = []
    for style in range(styles):
        for view in range(views):
            random = step_generator(seed, style * views + view)
            chosen = random_colours(len(concepts), COLOURED, names, random)
            things = premultiplied(pictures.rgba[style, concepts])
            right = torch.full((len(concepts),), -1)
            if view % PAIR_EVERY == PAIR_EVERY - 1:
                other = partners(len(concepts), random)
                right = torch.from_numpy(concepts)[other]
                pixels = place_pair(things, things[other], random)
            else:
                pixels = place(things, PLACEMENT, random)
            z = encode(autoencoder, on_background(pixels, palette[chosen])).half().contiguous().cpu()
            parts.append(Latents(z, torch.full_like(chosen, style), torch.from_numpy(concepts), chosen, right))
    return Latents(*(torch.cat([getattr(part, field) for part in parts]) for field in Latents.__slots__))


def partners(count: int, random: torch.Generator) -> Tensor:
    """For each of `count` objects another one, [count]: nothing stands beside itself."""
    order = torch.randperm(count, generator=random)
    partner = torch.empty(count, dtype=torch.long)
    partner[order] = order.roll(1)
    return partner
