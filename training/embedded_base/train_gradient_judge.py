"""Trains the second judge (`gradient_judge.py`) on true pictures, augmented otherwise than the first one's.

    python -m atelier.training.embedded_base.train_gradient_judge --work build/base

Turned, of other brightness and tint, made coarser, partly hidden, on backgrounds that change from side to side. Nothing
goes through an autoencoder. Descriptors are computed once for a pool of views: the perceptron then learns in a minute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from atelier.training.embedded_base.ema_trainer import step_generator
from atelier.training.embedded_base.gradient_judge import WEIGHTS, GradientNetwork, descriptors
from atelier.training.embedded_base.judge import Judge
from atelier.training.embedded_base.pictures import EmojiPictures, load
from atelier.training.embedded_base.synthetic_styles import placed_in_style
from atelier.training.embedded_base.train_judge import LabeledPictures, accuracy, all_styles, objects_of_base
from atelier.training.embedded_base.views import COLOURS, Placement, colour

STYLES = all_styles()
PLACEMENT = Placement(smallest=0.65, shift=0.12, degrees=12)
BATCH = 512


@dataclass(frozen=True, slots=True)
class Pool:
    """Descriptors [N, INPUTS] of views with their object and style indices [N]."""

    numbers: Tensor
    objects: Tensor
    styles: Tensor


def backgrounds(count: int, random: torch.Generator) -> Tensor:
    """[count, 3, 64, 64]: half white, the rest a named colour that goes over into another colour a little."""
    palette = torch.stack([colour(name) for name in COLOURS])
    flat = palette[torch.randint(len(palette), (count,), generator=random)]
    other = (flat + torch.randn(count, 3, generator=random) * 0.08).clamp(0, 1)
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    ramps = torch.stack([ramp, ramp.T])[torch.randint(2, (count,), generator=random)][:, None]
    mixed = torch.lerp(flat[:, :, None, None], other[:, :, None, None], ramps)
    white = (torch.rand(count, generator=random) < 0.5)[:, None, None, None]
    return torch.where(white, 1.0, mixed)


def spoiled(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Gamma and tint of each picture changed, a third made coarser, a third with a square hidden."""
    count = len(pixels)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        """In low … high, for each picture or each of its channels, [B, channels, 1, 1]."""
        return low + (high - low) * torch.rand(count, channels, 1, 1, generator=random)

    pixels = (pixels.clamp(1e-4, 1) ** uniform(0.8, 1.25) * uniform(0.93, 1.04, 3)).clamp(0, 1)
    coarse = F.interpolate(F.interpolate(pixels, size=40, mode="area"), size=64, mode="bilinear")
    pixels = torch.where(uniform(0, 1) < 1 / 3, coarse, pixels)
    across, down = (torch.arange(64).view(1, 1, *shape) for shape in ((1, 64), (64, 1)))
    left, top, side = uniform(0, 52), uniform(0, 52), uniform(6, 14)
    hidden = (across >= left) & (across < left + side) & (down >= top) & (down < top + side)
    return torch.where(hidden & (uniform(0, 1) < 1 / 3), uniform(0, 1, 3), pixels)


def views_of_styles(pictures: EmojiPictures, each: int, random: torch.Generator) -> LabeledPictures:
    """`each` views of random objects in every style, in the order of `STYLES`."""
    objects = torch.randint(len(pictures.names), (len(STYLES) * each,), generator=random)
    chosen = zip(STYLES, objects.split(each), strict=True)
    parts = [placed_in_style(pictures, style, part, PLACEMENT, random) for style, part in chosen]
    placed = torch.cat(parts)
    pixels = placed[:, :3] + backgrounds(len(placed), random) * (1 - placed[:, 3:])
    return LabeledPictures(pixels.clamp(0, 1), objects, torch.arange(len(STYLES)).repeat_interleave(each))


def pool_of(pictures: EmojiPictures, rounds: int, seed: int) -> Pool:
    """Descriptors of `rounds` × 64 views in every style, spoiled."""
    parts = []
    for number in range(rounds):
        random = step_generator(seed, number)
        batch = views_of_styles(pictures, 64, random)
        parts.append((descriptors(spoiled(batch.pixels, random)).half(), batch.objects, batch.styles))
    return Pool(*(torch.cat(column) for column in zip(*parts, strict=True)))


def train(pool: Pool, names: Sequence[str], epochs: int, seed: int) -> Judge:
    """AdamW over the pool, its rate falling along a cosine."""
    torch.manual_seed(seed)
    network = GradientNetwork(len(names), len(STYLES))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (len(pool.objects) // BATCH)
    for step in range(steps):
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * falling
        chosen = torch.randint(len(pool.objects), (BATCH,), generator=step_generator(seed + 3, step))
        _, objects, styles = network.named(pool.numbers[chosen].float())
        loss = F.cross_entropy(objects, pool.objects[chosen]) + 0.5 * F.cross_entropy(styles, pool.styles[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Judge(network, names, STYLES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the judge, save it and print its accuracy on views never trained on, by style."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=200, help="512 views each")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pictures = objects_of_base(load(options.work))
    judge = train(pool_of(pictures, options.rounds, options.seed), pictures.names, options.epochs, options.seed)
    judge.save(options.out)
    fresh = views_of_styles(pictures, 256, step_generator(options.seed + 2, 0))
    for index, style in enumerate(STYLES):
        part = fresh.styles == index
        found = accuracy(judge, LabeledPictures(fresh.pixels[part], fresh.objects[part], fresh.styles[part]))
        print(f"{style:18s} object {found[0]:.3f}   style {found[1]:.3f}")  # noqa: T201 (a command)


if __name__ == "__main__":
    main()
