"""Trains the judge to classify objects and styles of the emoji pictures, from views harder than any drawing.

    python -m atelier.training.embedded_base.train_judge --work build/base

A quarter of the pictures have been through the base's autoencoder, so that its blur does not count against a
drawing.
"""

# diffusers and transformers annotate their own constructors too narrowly (tuple[int] for tuples of any length).
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.training.embedded_base.ema_trainer import step_generator
from atelier.training.embedded_base.judge import WEIGHTS, Judge, Network
from atelier.training.embedded_base.pictures import EmojiPictures, load, read_prompts
from atelier.training.embedded_base.synthetic_styles import placed_in_style
from atelier.training.embedded_base.vae import encode
from atelier.training.embedded_base.views import COLOURS, Placement, colour, on_background

PLACEMENT = Placement(smallest=0.6, shift=0.1, degrees=10)
THROUGH_AUTOENCODER = 0.25
BATCH = 96
DECODED = 2048
"""Views that are encoded and decoded once: the autoencoder is too slow to run for every batch."""


@dataclass(frozen=True, slots=True)
class LabeledPictures:
    """Pictures [B, 3, 64, 64] in 0 … 1 with their labels, object and style indices [B]."""

    pixels: Tensor
    objects: Tensor
    styles: Tensor


def objects_of_base(pictures: EmojiPictures) -> EmojiPictures:
    """The objects the base was trained on and those held out from it: what its drawings can be asked to show."""
    words = read_prompts()
    chosen = pictures.indices([*words["concepts"], *words["weak"], *words["held_out"]])
    concepts = tuple(pictures.concepts[index] for index in chosen)
    return replace(pictures, concepts=concepts, rgba=pictures.rgba[:, chosen])


def all_styles() -> tuple[str, ...]:
    """The style words a judge knows: those the base was trained on, then those held out from it."""
    words = read_prompts()
    return (*words["styles"], *words["held_out_styles"])


def views(pictures: EmojiPictures, styles: Tensor, objects: Tensor, random: torch.Generator) -> LabeledPictures:
    """One random view of each picture asked for, on white, on a named colour or on any colour at all.

    `styles` and `objects` are indices [B] into `all_styles()` and `pictures.names`.
    """
    count = len(styles)
    pixels = torch.empty(count, 4, *pictures.rgba.shape[2:4])
    for index in styles.unique().tolist():
        ours, style = styles == index, all_styles()[index]
        pixels[ours] = placed_in_style(pictures, style, objects[ours], PLACEMENT, random)
    palette = torch.stack([colour(name) for name in COLOURS])
    named = palette[torch.randint(len(palette), (count,), generator=random)]
    kind = torch.rand(count, generator=random)[:, None]
    behind = torch.where(kind < 0.5, named, torch.rand(count, 3, generator=random))
    return LabeledPictures(on_background(pixels, torch.where(kind > 0.7, 1.0, behind)), objects, styles)


def degrade(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Blur some, shift the brightness and contrast a little, add noise to half: too much would hide the style."""

    def chance(most: float) -> Tensor:
        """Uniform in 0 … ``most``, one number for each picture, [B, 1, 1, 1]."""
        return torch.rand(len(pixels), generator=random)[:, None, None, None] * most

    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, blurred, (chance(2.0) - 1).clamp(min=0))
    pixels = (pixels - 0.5) * (0.85 + chance(0.3)) + 0.5 + chance(0.1) - 0.05
    return (pixels + torch.randn(pixels.shape, generator=random) * (chance(0.08) - 0.04).clamp(min=0)).clamp(0, 1)


def random_views(pictures: EmojiPictures, count: int, random: torch.Generator) -> LabeledPictures:
    """Views of pictures drawn evenly from all objects in all styles."""
    styles = torch.randint(len(all_styles()), (count,), generator=random)
    return views(pictures, styles, torch.randint(len(pictures.names), (count,), generator=random), random)


@torch.no_grad()
def through_autoencoder(batch: LabeledPictures, vae: AutoencoderKL) -> LabeledPictures:
    """The same views, encoded and decoded by the base's autoencoder."""
    parts = []
    for part in batch.pixels.split(64):
        (decoded,) = vae.decode(encode(vae, part) / vae.config["scaling_factor"], return_dict=False)
        parts.append(F.adaptive_avg_pool2d(decoded, part.shape[2:]))
    return LabeledPictures((torch.cat(parts) / 2 + 0.5).clamp(0, 1), batch.objects, batch.styles)


def mixed_batch(pictures: EmojiPictures, decoded: LabeledPictures, step: int, seed: int) -> LabeledPictures:
    """Fresh views, the last quarter of them decoded by the autoencoder, all degraded."""
    random = step_generator(seed, step)
    decoded_count = int(BATCH * THROUGH_AUTOENCODER)
    fresh = random_views(pictures, BATCH - decoded_count, random)
    chosen = torch.randint(len(decoded.objects), (decoded_count,), generator=random)
    return LabeledPictures(
        degrade(torch.cat([fresh.pixels, decoded.pixels[chosen]]), random),
        torch.cat([fresh.objects, decoded.objects[chosen]]),
        torch.cat([fresh.styles, decoded.styles[chosen]]),
    )


def train(pictures: EmojiPictures, decoded: LabeledPictures, steps: int, seed: int) -> Judge:
    """Train for so many steps; the learning rate falls along a cosine."""
    torch.manual_seed(seed)
    network = Network(len(pictures.names), len(all_styles())).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.02)
    for step in range(steps):
        rate = 3e-3 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = mixed_batch(pictures, decoded, step, seed)
        pixels = (batch.pixels * 2 - 1).contiguous(memory_format=torch.channels_last)
        _, object_logits, style_logits = network(pixels)
        loss = F.cross_entropy(object_logits, batch.objects) + F.cross_entropy(style_logits, batch.styles)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    return Judge(network, pictures.names, all_styles())


def accuracy(judge: Judge, batch: LabeledPictures) -> tuple[float, float]:
    """Shares of the pictures whose object and whose style the judge names first."""
    predictions = [judge.classify_pixels(part) for part in batch.pixels.split(256)]
    right_objects = torch.cat([prediction.objects.argmax(1) for prediction in predictions]) == batch.objects
    right_styles = torch.cat([prediction.styles.argmax(1) for prediction in predictions]) == batch.styles
    return float(right_objects.float().mean()), float(right_styles.float().mean())


def evaluate(pictures: EmojiPictures, vae: AutoencoderKL, judge: Judge, seed: int) -> dict[str, tuple[float, float]]:
    """Object and style accuracy per style on views never trained on, and again through the autoencoder."""
    fresh = random_views(pictures, DECODED, step_generator(seed + 2, 0))
    result = {}
    for title, batch in (("views", fresh), ("through the autoencoder", through_autoencoder(fresh, vae))):
        for index, style in enumerate(all_styles()):
            ours = batch.styles == index
            part = LabeledPictures(batch.pixels[ours], batch.objects[ours], batch.styles[ours])
            result[f"{style}, {title}"] = accuracy(judge, part)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the judge, save it and print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--base", type=Path, default=Path("assets/base"), help="pipeline whose autoencoder is used")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pictures = objects_of_base(load(options.work))
    vae = AutoencoderKL.from_pretrained(options.base / "vae").float().eval().to(memory_format=torch.channels_last)
    decoded = through_autoencoder(random_views(pictures, DECODED, step_generator(options.seed + 1, 0)), vae)
    judge = train(pictures, decoded, options.steps, options.seed)
    judge.save(options.out)
    for title, (right_object, right_style) in evaluate(pictures, vae, judge, options.seed).items():
        print(f"{title:36s} object {right_object:.3f}   style {right_style:.3f}")  # noqa: T201 (a command)


if __name__ == "__main__":
    main()
