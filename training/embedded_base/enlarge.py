"""From the 64-pixel autoencoder to one of 128 pixels with the same latents: the pictures get crisper, the UNet stays.

One block more on either side. The encoder learns to give the latents that the small one gives of the picture at half
its size; the decoder starts as the small one with a smooth enlargement behind it, and learns to sharpen. A latent,
and so a training step, a prior picture or a gate, is what it was before.

    python -m atelier.training.embedded_base.enlarge --work build/base --vae build/base/run/autoencoder/vae
"""

# diffusers annotates its constructor too narrowly, and says nothing of the modules inside a model.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from atelier.training.embedded_base.ema_trainer import EmaTrainer, Schedule, StepResult, follow, step_generator
from atelier.training.embedded_base.pictures import BASE_SIDE, load, read_prompts
from atelier.training.embedded_base.vae import picture_error, varied_pixels

BATCH = 8
RATE, HOLD = 5e-4, 0.25
LATENT_NOISE = 0.04
"""Added to latents in the UNet's scale, so that the decoder forgives small errors of the UNet."""


@torch.no_grad()
def enlarged(small: AutoencoderKL) -> AutoencoderKL:
    """An autoencoder for pictures of twice the side, with one block more on either side of `small`'s.

    Its decoder is `small`'s with a smooth enlargement before the last convolution; its encoder halves the picture's
    features and goes on as `small`'s does. Both are near what they shall learn, not equal to it.
    """
    settings = {key: value for key, value in small.config.items() if not key.startswith("_")}
    widths = settings["block_out_channels"]
    settings |= {
        "block_out_channels": (widths[0], *widths),
        "down_block_types": ("DownEncoderBlock2D", *settings["down_block_types"]),
        "up_block_types": ("UpDecoderBlock2D", *settings["up_block_types"]),
        "sample_size": 2 * settings["sample_size"],
    }
    large = AutoencoderKL(**settings)
    known = small.state_dict()
    weights = {name: known.get(_name_in_small(name), value) for name, value in large.state_dict().items()}
    large.load_state_dict(weights)
    up, down = large.decoder.up_blocks, large.encoder.down_blocks
    for resnet in (*up[-1].resnets, *down[0].resnets):
        _pass_through(resnet)
    blur = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    halve = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 4
    _same_for_every_channel(up[-2].upsamplers[0].conv, blur)
    _same_for_every_channel(down[0].downsamplers[0].conv, halve)
    return large


def _name_in_small(name: str) -> str:
    """The weight of the small autoencoder from which one of the large one starts; of a new block, a name it lacks."""
    parts = name.split(".")
    if name.startswith("encoder.down_blocks."):
        parts[2] = str(int(parts[2]) - 1)
    return ".".join(parts)


def _pass_through(resnet: Any) -> None:
    resnet.conv2.weight.zero_()
    resnet.conv2.bias.zero_()


def _same_for_every_channel(convolution: Any, kernel: Tensor) -> None:
    convolution.weight.zero_()
    convolution.bias.zero_()
    for channel in range(len(convolution.weight)):
        convolution.weight[channel, channel] = kernel


def train_enlarged(
    trainer: EmaTrainer, small: AutoencoderKL, batch: Callable[[torch.Generator], Tensor], schedule: Schedule, seed: int
) -> Iterator[StepResult]:
    """Train until the schedule ends; yields every step. The decoder learns from the small encoder's latents.

    `batch` draws pictures to give back, [B, 3, 128, 128] in −1 … 1.
    """
    large = trainer.modules["vae"]
    assert isinstance(large, AutoencoderKL)
    scale = small.config["scaling_factor"]
    while schedule.progress(trainer.step, trainer.seconds) < 1:
        random = step_generator(seed, trainer.step)
        pixels = batch(random).to(large.device)
        with torch.no_grad():
            z = small.encode(F.avg_pool2d(pixels, 2), return_dict=False)[0].mean
        with torch.autocast(large.device.type, torch.bfloat16):
            own = large.encode(pixels, return_dict=False)[0].mean
            noise = torch.randn(z.shape, generator=random).to(z)
            (decoded,) = large.decode(z + LATENT_NOISE / scale * noise, return_dict=False)
        loss = picture_error(pixels, decoded.float()) + (scale * (own.float() - z)).square().mean()
        lr = schedule.rate(trainer.step, trainer.seconds)
        trainer.update(loss, lr)
        yield StepResult(trainer.step, float(loss.detach()), lr, trainer.seconds)


def enlarge_stage(folder: Path, small: AutoencoderKL, schedule: Schedule, options: argparse.Namespace) -> None:
    """Train in `folder`, going on where a run before it stopped; writes folder/vae.

    Of `options` it reads `work` (with the pictures), `styles` (the first ones of the pictures), `seed` and `every`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, words = load(options.work, BASE_SIDE), read_prompts()
    learnt = pictures.indices([name for name in pictures.names if name not in set(words["held_out"])])
    small = small.float().eval().requires_grad_(False)
    trainer = EmaTrainer({"vae": enlarged(small)}, decay=0.997, weight_decay=1e-4)
    if (folder / "checkpoint.pt").exists():
        trainer.restore(folder / "checkpoint.pt")
    batch = partial(varied_pixels, pictures, len(options.styles), learnt, BATCH)
    steps = train_enlarged(trainer, small, batch, schedule, options.seed)
    follow(steps, trainer, folder, options.every)
    best = trainer.averaged()["vae"]
    assert isinstance(best, AutoencoderKL)
    best.save_pretrained(folder / "vae")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="pictures and runs (default: build/base)")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the 64-pixel autoencoder")
    parser.add_argument("--run", default="enlarged", help="this run's folder inside the work folder")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long to train")
    parser.add_argument("--styles", nargs="+", default=read_prompts()["styles"])
    parser.add_argument("--every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    small = AutoencoderKL.from_pretrained(options.vae)
    enlarge_stage(options.work / options.run, small, Schedule(lr=RATE, seconds=options.seconds, hold=HOLD), options)


if __name__ == "__main__":
    main()
