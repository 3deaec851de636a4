"""DreamBooth (Ruiz et al. 2023, arXiv 2208.12242) for adapters: a few pictures, a trigger word, prior preservation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.attach.mount import find_target_modules, mount
from atelier.adapters.core.base import AdapterSet, weight_of
from atelier.adapters.core.mix import Mix
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.device import has_own_memory
from atelier.training.config.events import Previewed
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.loop.batch import (
    Batch,
    PromptEmbeddingCache,
    UnetInput,
    batch_losses,
    example_losses,
    sample_batch,
    sample_examples,
    unet_inputs,
)
from atelier.training.loop.distributed import SINGLE_PROCESS, ProcessGroup
from atelier.training.loop.noise import sample_timesteps
from atelier.training.loop.recipe import Losses, MicrostepStages, Recipe
from atelier.training.recipes.prior_preservation import draw_prior, fill_template
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest, draw

VALIDATION_TIMESTEPS = 8
VALIDATION_SEED = 1000
PREVIEW_SEED = 7
PREVIEW_STEPS = 8   # the judge tells no difference to 20 (docs/samplers.md), and the training waits for each of them


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The examples of a run."""

    subject: list[Example]    # what is learned
    prior: list[Example]      # what is to stay as the base model draws it
    held_out: list[Example]   # for validation; not trained on where there are enough to spare one


@dataclass(frozen=True, slots=True)
class DreamBoothInput:
    """A microstep's batch, and the UNet's inputs made of it."""

    batch: Batch
    local_positions: Sequence[int]   # that this process computes
    inputs: list[UnetInput]

    def tensors(self) -> list[Tensor]:
        """Every tensor that changes from one microstep to the next of the same signature."""
        return [tensor for each in self.inputs for tensor in each.tensors()]

    def signature(self) -> Hashable:
        """Which examples have which size."""
        return len(self.batch.examples), tuple((each.positions, each.noisy.latents.shape) for each in self.inputs)


def split_examples(model: BaseModel, config: TrainConfig, examples: list[Example]) -> TrainingData:
    """Hold out one example in eight for validation and draw the prior pictures.

    With fewer than eight examples none can be spared: validation then uses those that are trained on.
    """
    spare = len(examples) // 8
    prior = draw_prior(model, config) if config.prior_batch else []
    return TrainingData(examples[: len(examples) - spare], prior, examples[-spare:] if spare else examples)


def recipe(model: BaseModel, adapters: AdapterSet, data: TrainingData, config: TrainConfig, folder: Path) -> Recipe:
    """Tie model, adapters and data together for the loop."""
    text = PromptEmbeddingCache(model, adapters)
    text.precompute([*data.subject, *data.prior, *data.held_out])
    drawings = preview_cache(model)
    if drawings and config.preview_every and not config.train_text_encoder:
        drawings.encode_prompts(model, [*preview_prompts(model, config), ""])   # while the text encoders are needed
    timestep_count = model.scheduler.config.num_train_timesteps

    def prepare(generator: torch.Generator, group: ProcessGroup = SINGLE_PROCESS) -> DreamBoothInput:
        batch = sample_subject_and_prior(model, data, config, generator)
        positions = group.shard(len(batch.examples))
        return DreamBoothInput(batch, positions, unet_inputs(model, batch, text, positions, config.min_snr_gamma))

    def compute(given: DreamBoothInput) -> Losses:
        each = example_losses(model, given.inputs, given.local_positions)
        return losses(each, given.batch, given.local_positions, config)

    def microstep(generator: torch.Generator, group: ProcessGroup = SINGLE_PROCESS) -> Losses:
        return compute(prepare(generator, group))

    def validate(weights: AdapterSet) -> float:
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        total = 0.0
        with torch.no_grad(), mount(model.models(), Mix(((weights, 1.0),))):
            for example in data.held_out:
                timesteps = sample_timesteps(VALIDATION_TIMESTEPS, timestep_count, generator)
                batch = sample_batch([example] * VALIDATION_TIMESTEPS, timesteps, generator)
                total += batch_losses(model, config, batch, text).mean().item()
        return total / len(data.held_out)

    def preview(weights: AdapterSet, step: int, prompt: str) -> list[Previewed]:
        prompts = [prompt] if prompt else preview_prompts(model, config)
        pictures = [draw_preview(model, config, weights, line, cache=drawings) for line in prompts]
        return [
            _save_preview(picture, line, step, "asked" if prompt else str(i), folder)
            for i, (picture, line) in enumerate(zip(pictures, prompts, strict=True))
        ]

    def update_masks() -> None:
        for name, module in find_target_modules(model.models(), adapters).items():
            adapters[name].update_mask(weight_of(module))

    def attach() -> AbstractContextManager[None]:
        return mount(model.models(), Mix(((adapters, 1.0),)))

    return Recipe(adapters, attach, microstep, MicrostepStages(prepare, compute), validate, preview, update_masks)


def sample_subject_and_prior(
    model: BaseModel, data: TrainingData, config: TrainConfig, generator: torch.Generator
) -> Batch:
    """Sample examples of the subject, followed by prior examples, where there are any."""
    total, prior_count = model.scheduler.config.num_train_timesteps, config.prior_batch if data.prior else 0
    subject = sample_examples(data.subject, config.batch, generator)
    prior = sample_examples(data.prior, prior_count, generator)
    # Spread separately, so that the subject's own timesteps cover the whole range in every batch.
    timesteps = torch.cat([sample_timesteps(count, total, generator) for count in (config.batch, prior_count)])
    return sample_batch(subject + prior, timesteps, generator)


def losses(each: Tensor, batch: Batch, positions: Sequence[int], config: TrainConfig) -> Losses:
    """This process's share of a batch's losses.

    Args:
        each: loss of each example at the ``positions``.
        batch: from :func:`sample_subject_and_prior`.
        positions: those that this process computes.
        config: of the run.
    """
    subjects, prior_count = sum(position < config.batch for position in positions), len(batch.examples) - config.batch
    subject, prior = each[:subjects].sum() / config.batch, each[subjects:].sum() / max(1, prior_count)
    return Losses(subject, prior * config.prior_weight)


def preview_prompts(model: BaseModel, config: TrainConfig) -> list[str]:
    """The prompts previews are drawn from: the person's own lines, else the caption template."""
    lines = [line.strip() for line in config.preview_prompts.splitlines() if line.strip()]
    templates = lines or [config.caption or model.info.caption]
    return [fill_template(template, config.trigger_word, config.subject) for template in templates]


def preview_cache(model: BaseModel) -> DrawCache | None:
    """What previews share beside a step on a card, with little memory; None elsewhere: merged weights get old."""
    return DrawCache(savings=DrawSavings(tiles=True, mount=True)) if has_own_memory(model.device) else None


def draw_preview(
    model: BaseModel, config: TrainConfig, weights: AdapterSet, prompt: str, steps: int = PREVIEW_STEPS,
    cache: DrawCache | None = None,
) -> Image.Image:   # fmt: skip
    """Draw with a fixed seed, at the size that is trained."""
    side = config.resolution // model.info.size_multiple * model.info.size_multiple   # as the buckets are
    request = DrawRequest(prompt=prompt, seed=PREVIEW_SEED, steps=steps, width=side, height=side)
    return draw(model, request, Mix(((weights, 1.0),)), cache=cache or preview_cache(model))[0]


def _save_preview(picture: Image.Image, prompt: str, step: int, name: str, folder: Path) -> Previewed:
    path = folder / "previews" / f"{step:06d}-{name}.png"
    picture.save(path)
    return Previewed(step, prompt, f"previews/{path.name}")
