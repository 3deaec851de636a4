"""DreamBooth (Ruiz et al. 2023, arXiv 2208.12242) for adapters: a few pictures, a trigger word, prior preservation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.attach.mount import find_target_modules, mount
from atelier.adapters.core.base import AdapterSet, weight_of
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.low_rank import finished
from atelier.adapters.kinds.catalog import get_kind
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.device import has_own_memory
from atelier.training.config.caption_template import fill_template
from atelier.training.config.events import Measured, Previewed
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
from atelier.training.measures.memorization import make_pairs, measure_pairs
from atelier.training.measures.run_measures import RunMeasures
from atelier.training.recipes.prior_preservation import draw_prior
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.prompt_encoding import WEIGHTS, PromptReading
from atelier.training.sampling.sample import DrawRequest, draw

Parts = Sequence[tuple[AdapterSet, float]]   # adapters with strengths
LEAST_TO_SPARE = 8   # pictures of which one is held out
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
    views: list[Example] = field(default_factory=list)   # of the subject's, where none is spared; only measured on


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
        return len(self.batch.examples), tuple(
            (each.positions, each.noisy.latents.shape, each.text.features.shape, each.mask is None)
            for each in self.inputs)   # fmt: skip


def split_examples(
    model: BaseModel, config: TrainConfig, examples: list[Example], views: Sequence[Example] = ()
) -> TrainingData:
    """Hold out one example in eight for validation and draw the prior pictures.

    With fewer than eight examples none can be spared: validation then uses those that are trained on, and memorization
    is measured on ``views``, another view of each.
    """
    spare = len(examples) // LEAST_TO_SPARE
    prior = draw_prior(model, config) if config.prior_batch else []
    members = examples[: len(examples) - spare]
    return TrainingData(members, prior, examples[-spare:] if spare else members, [] if spare else list(views))


def recipe(
    model: BaseModel, adapters: AdapterSet, data: TrainingData, config: TrainConfig, folder: Path, *,
    others: Parts = (),
) -> Recipe:   # fmt: skip
    """Tie model, adapters and data together for the loop; ``others`` are adapters that act in previews as well."""
    text = PromptEmbeddingCache(model, adapters, config.clip_skip)
    text.precompute([*data.subject, *data.prior, *data.held_out])
    drawings = preview_cache(model)
    if drawings and config.preview_every and not config.train_text_encoder:
        reading = PromptReading(WEIGHTS, config.clip_skip)
        drawings.encode_prompts(model, [*preview_prompts(model, config), ""], reading)   # while the encoders are here

    def prepare(generator: torch.Generator, group: ProcessGroup = SINGLE_PROCESS) -> DreamBoothInput:
        """Sample a microstep's batch and take this process's share of it."""
        batch = sample_subject_and_prior(model, data, config, generator)
        positions = group.shard(len(batch.examples))
        return DreamBoothInput(batch, positions, unet_inputs(model, batch, text, positions, config.min_snr_gamma))

    def compute(given: DreamBoothInput) -> Losses:
        """The losses of a prepared batch."""
        each = example_losses(model, given.inputs, given.local_positions)
        return losses(each, given.batch, given.local_positions, config)

    def microstep(generator: torch.Generator, group: ProcessGroup = SINGLE_PROCESS) -> Losses:
        """Sample a batch and compute its losses."""
        return compute(prepare(generator, group))

    def validate(weights: AdapterSet) -> float:
        """Mean loss on the held-out pictures."""
        return _validation_loss(model, data, config, text, weights)

    def preview(weights: AdapterSet, step: int, prompt: str) -> list[Previewed]:
        """Draw the recipe's own prompts, or the one that was asked for, and save the pictures."""
        prompts, mix = [prompt] if prompt else preview_prompts(model, config), Mix(((weights, 1.0), *others))
        drawn = {line: draw_previews(model, config, mix, line, cache=drawings) for line in prompts}
        return save_previews(folder, step, drawn, asked=bool(prompt))

    kind = get_kind(adapters.kind)

    def attach() -> AbstractContextManager[None]:
        """Mount the adapters on the model."""
        return mount(model.models(), Mix(((adapters, 1.0),)))

    return Recipe(
        adapters, attach, microstep, MicrostepStages(prepare, compute), validate, preview,
        measure=run_measures(model, config, text, data), update_masks=partial(_update_masks, model, adapters),
        finalize=finished,
        before_update=partial(kind.before_update, adapters), after_update=partial(kind.after_update, adapters),
    )   # fmt: skip


def _update_masks(model: BaseModel, adapters: AdapterSet) -> None:
    """Let every adapter choose anew which of its values train on."""
    for name, module in find_target_modules(model.models(), adapters).items():
        adapters[name].update_mask(weight_of(module))


def run_measures(
    model: BaseModel, config: TrainConfig, text: PromptEmbeddingCache, data: TrainingData
) -> Callable[[AdapterSet, int], Measured | None]:
    """What the run measures beside its validations; nothing where it has none."""
    most = measure_pairs((config.batch + config.prior_batch) * config.accumulate, config.validate_every)
    pairs = make_pairs(data.subject, [] if data.views else data.held_out, data.views, most)
    if not config.validate_every or not pairs:
        return lambda *_: None
    return RunMeasures.of(model, config, text, pairs)


def _validation_loss(
    model: BaseModel, data: TrainingData, config: TrainConfig, text: PromptEmbeddingCache, weights: AdapterSet
) -> float:
    """Always at the same timesteps and with the same noise: the same weights give the same number."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    total = 0.0
    with torch.no_grad(), mount(model.models(), Mix(((weights, 1.0),))):
        for example in data.held_out:
            timesteps = sample_timesteps(VALIDATION_TIMESTEPS, model.scheduler.config.num_train_timesteps, generator)
            batch = sample_batch([example] * VALIDATION_TIMESTEPS, timesteps, generator)
            total += batch_losses(model, config, batch, text).mean().item()
    return total / len(data.held_out)


def sample_subject_and_prior(
    model: BaseModel, data: TrainingData, config: TrainConfig, generator: torch.Generator
) -> Batch:
    """Sample examples of the subject, followed by prior examples, where there are any."""
    total, prior_count = model.scheduler.config.num_train_timesteps, config.prior_batch if data.prior else 0
    subject = sample_examples(data.subject, config.batch, generator)
    prior = sample_examples(data.prior, prior_count, generator)
    # Spread separately, so that the subject's own timesteps cover the whole range in every batch.
    timesteps = torch.cat([sample_timesteps(count, total, generator) for count in (config.batch, prior_count)])
    return sample_batch(subject + prior, timesteps, generator, config.noise_offset)


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
    return [fill_template(template, trigger=config.trigger_word, subject=config.subject) for template in templates]


def preview_cache(model: BaseModel) -> DrawCache | None:
    """What previews share beside a step on a card, with little memory; None elsewhere: merged weights get old."""
    return DrawCache(savings=DrawSavings(tiles=True, mount=True)) if has_own_memory(model.device) else None


def draw_preview(
    model: BaseModel, config: TrainConfig, weights: AdapterSet, prompt: str, steps: int = PREVIEW_STEPS
) -> Image.Image:
    """Draw one picture with the first of the fixed seeds, at the size that is trained."""
    return draw_previews(model, replace(config, preview_seeds=1), Mix(((weights, 1.0),)), prompt, steps)[0]


def draw_previews(
    model: BaseModel, config: TrainConfig, mix: Mix, prompt: str, steps: int = PREVIEW_STEPS,
    cache: DrawCache | None = None,
) -> list[Image.Image]:   # fmt: skip
    """Draw with each of the fixed seeds, at the size that is trained."""
    side = config.resolution // model.info.size_multiple * model.info.size_multiple   # as the buckets are
    cache = cache or preview_cache(model)
    requests = [DrawRequest(prompt=prompt, seed=PREVIEW_SEED + i, steps=steps, width=side, height=side,
                            clip_skip=config.clip_skip)
                for i in range(config.preview_seeds)]   # fmt: skip
    # One after the other: the training has left memory for one picture.
    return [draw(model, request, mix, cache=cache)[0] for request in requests]


def save_previews(
    folder: Path, step: int, drawn: Mapping[str, Sequence[Image.Image]], *, asked: bool
) -> list[Previewed]:
    """Write previews into a run's folder.

    Args:
        folder: the run's.
        step: whose weights drew them.
        drawn: pictures of each prompt, one a seed.
        asked: whether a person asked for them: then they replace none that are there.
    """
    earlier = len(list(folder.glob(f"previews/{step:06d}-asked*")))
    shown = []
    for i, (prompt, pictures) in enumerate(drawn.items()):
        for j, picture in enumerate(pictures):
            name = f"{step:06d}-" + (f"asked{earlier}" if asked else str(i)) + f"-{PREVIEW_SEED + j}" * (j > 0)
            picture.save(folder / "previews" / f"{name}.png")
            shown.append(Previewed(step, prompt, f"previews/{name}.png", PREVIEW_SEED + j))
    return shown
