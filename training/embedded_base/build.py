"""The embedded base model, from nothing to assets/base: tokenizer, autoencoder, latents, UNet with text encoder.

A 14 M-parameter latent diffusion pipeline in ordinary diffusers format, 28 MB in half precision.

    python -m atelier.training.embedded_base.build --work build/base --out assets/base
    python -m atelier.training.embedded_base.build --work build/base --run better --from assets/base --seconds 5000

Every stage leaves a file in the run's folder and resumes from it; a killed run loses at most a few minutes.
"""

# diffusers and transformers annotate their own constructors too narrowly (tuple[int] for tuples of any length).
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPTokenizer

from atelier.training.embedded_base.ema_trainer import EmaTrainer, Schedule, follow
from atelier.training.embedded_base.enlarge import HOLD, RATE, enlarge_stage
from atelier.training.embedded_base.pictures import EmojiPictures, load, read_prompts
from atelier.training.embedded_base.text import train_tokenizer
from atelier.training.embedded_base.unet import (
    Parts,
    caption_writer,
    new_scheduler,
    new_text_encoder,
    new_unet,
    train_unet,
    with_attention_everywhere,
)
from atelier.training.embedded_base.vae import (
    Latents,
    cache_latents,
    encode,
    fix_deviation,
    new_autoencoder,
    normalise_latents,
    train_autoencoder,
)
from atelier.training.embedded_base.views import on_background, premultiplied


def autoencoder_stage(
    folder: Path, pictures: EmojiPictures, words: dict[str, Any], options: argparse.Namespace
) -> None:
    """Train the autoencoder on every object that is not held out, normalise its latents, write folder/vae."""
    learnt = pictures.indices([name for name in pictures.names if name not in set(words["held_out"])])
    styles = len(options.styles)
    autoencoder = new_autoencoder().to(options.device, memory_format=torch.channels_last)
    trainer = EmaTrainer({"vae": autoencoder}, decay=0.99, weight_decay=1e-4)
    if (folder / "checkpoint.pt").exists():
        trainer.restore(folder / "checkpoint.pt")
    schedule = Schedule(lr=1e-3, steps=options.autoencoder_steps)
    follow(
        train_autoencoder(trainer, pictures, learnt, styles, schedule, options.seed),
        trainer,
        folder,
        options.every,
    )
    best = trainer.averaged()["vae"]
    assert isinstance(best, AutoencoderKL)
    sample = premultiplied(pictures.rgba[:styles, learnt[::10]].reshape(-1, *pictures.rgba.shape[2:]))
    z = encode(best, on_background(sample, torch.ones(len(sample), 3)))
    normalise_latents(best, z.mean((0, 2, 3)), z.std((0, 2, 3)))
    fix_deviation(best)
    best.save_pretrained(folder / "vae")


def untrained_parts(run: Path, pictures: EmojiPictures, words: dict[str, Any], options: argparse.Namespace) -> Parts:
    """Tokenizer and autoencoder of this run, trained first if need be, with an untrained UNet and text encoder."""
    if not (run / "tokenizer").exists():
        train_tokenizer(pictures, [*words["styles"], *words["held_out_styles"], *words["backgrounds"]]).save_pretrained(
            run / "tokenizer"
        )
    if not (run / "autoencoder" / "vae").exists():
        (run / "autoencoder").mkdir(parents=True, exist_ok=True)
        autoencoder_stage(run / "autoencoder", pictures, words, options)
    if not (run / "enlarged" / "vae").exists():
        small = AutoencoderKL.from_pretrained(run / "autoencoder" / "vae")
        enlarge_stage(run / "enlarged", small, Schedule(lr=RATE, steps=options.enlarge_steps, hold=HOLD), options)
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    vae = AutoencoderKL.from_pretrained(run / "enlarged" / "vae")
    torch.manual_seed(options.seed)
    return Parts(tokenizer, new_text_encoder(tokenizer), vae, new_unet())


def trained_parts(folder: Path) -> Parts:
    """The parts of a pipeline folder, in single precision."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    unet = with_attention_everywhere(pipeline.unet.float())
    return Parts(pipeline.tokenizer, pipeline.text_encoder.float(), pipeline.vae.float(), unet)


def latents_stage(path: Path, parts: Parts, words: dict[str, Any], options: argparse.Namespace) -> Latents:
    """The cached views of the trained objects, encoded on first use."""
    if not path.exists():
        pictures = load(options.work, parts.vae.config["sample_size"])
        concepts = pictures.indices([*words["concepts"], *words["weak"]])
        vae = parts.vae.to(options.device)
        torch.save(
            astuple(cache_latents(vae, pictures, concepts, len(options.styles), options.views, options.seed)),
            path,
        )
    return Latents(*torch.load(path, weights_only=True))


def export(parts: Parts, trainer: EmaTrainer, out: Path) -> None:
    """Write the averaged weights as a half-precision diffusers pipeline."""
    averaged = trainer.averaged()
    averaged["unet"].set_attn_processor(AttnProcessor2_0())
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=averaged["text_encoder"],
        tokenizer=parts.tokenizer,
        unet=averaged["unet"],
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(out)
    for path in out.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where diffusers read a part from: nobody else has that folder
        if "dtype" in config:
            config["dtype"] = "float32"  # stored in half, used in single precision, like the parts beside it
        path.write_text(json.dumps(config, indent=2) + "\n")


def build(options: argparse.Namespace) -> None:
    """All stages, each skipped when its result is there."""
    pictures, words = load(options.work), read_prompts()
    options.styles = options.styles or words["styles"]
    if list(pictures.styles[: len(options.styles)]) != options.styles:
        raise ValueError(f"--styles must be the first of {', '.join(pictures.styles)}, in this order")
    run: Path = options.work / options.run
    run.mkdir(parents=True, exist_ok=True)
    parts = trained_parts(options.start) if options.start else untrained_parts(run, pictures, words, options)
    latents = latents_stage(run / "latents.pt", parts, words, options)
    parts.unet.to(options.device).train()
    parts.text_encoder.to(options.device).train()
    if options.device == "cpu":
        parts.unet.set_attn_processor(AttnProcessor())  # a third faster than the fused one at this size
        parts.text_encoder.set_attn_implementation("eager")  # likewise; captions are short
    modules = {"unet": parts.unet, "text_encoder": parts.text_encoder}
    trainer = EmaTrainer(modules, decay=options.decay, weight_decay=0.01)
    if (run / "checkpoint.pt").exists():
        trainer.restore(run / "checkpoint.pt")
    schedule = Schedule(lr=options.lr, steps=options.steps, seconds=options.seconds, hold=options.hold)
    write = caption_writer(parts.tokenizer, latents, pictures, words)
    events = train_unet(
        trainer, parts, latents, write, schedule, batch=options.batch, seed=options.seed, bf16=options.bf16
    )
    follow(events, trainer, run, options.every)
    export(parts, trainer, options.out or run / "pipeline")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; without --steps or --seconds, the hour-long run that made the first base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="pictures and runs (default: build/base)")
    parser.add_argument("--run", default="run", help="this run's folder inside the work folder")
    parser.add_argument("--from", dest="start", type=Path, help="continue from this pipeline instead of from nothing")
    parser.add_argument("--out", type=Path, help="pipeline folder to write (default: pipeline/ in the run's folder)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=0, help="steps of UNet and text encoder (default: 9000)")
    length.add_argument("--seconds", type=float, default=0.0, help="or train this long, learning rate by the clock")
    parser.add_argument("--autoencoder-steps", type=int, default=4000)
    parser.add_argument("--enlarge-steps", type=int, default=4000)
    parser.add_argument("--views", type=int, default=32, help="cached views of each picture")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=9e-4)
    parser.add_argument("--hold", type=float, default=0.3, help="share of the run at full learning rate")
    parser.add_argument("--styles", nargs="+", help="styles to learn (default: those of prompts.toml)")
    parser.add_argument("--decay", type=float, default=0.9995, help="of the running average, a step")
    parser.add_argument("--every", type=float, default=240.0, help="seconds between checkpoints")
    parser.add_argument("--bf16", action="store_true", help="multiply in bfloat16: 1.7 times as fast with AVX-512 BF16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if not (options.steps or options.seconds):
        options.steps = 9000
    return options


if __name__ == "__main__":
    build(parse(None))
