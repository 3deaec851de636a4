"""Break-for-Make (Xu et al. 2024, arXiv 2403.19456): train one half of a split adapter, or finally both together.

A content's own half learns from its pictures. In every second update, at random, the other half is active as well and
learns, a tenth as fast, from companions in three styles; at the end it is discarded. The same holds for a style. The
two are united without training (``adapters/fusion/break_for_make_halves.py``); a short training on the pictures of
both can follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.fusion.break_for_make_halves import scale_halves
from atelier.adapters.kinds.break_for_make import BreakForMake
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.loop.batch import Batch, PromptEmbeddingCache, batch_losses, sample_batch, sample_examples
from atelier.training.loop.distributed import SINGLE_PROCESS, ProcessGroup
from atelier.training.loop.factor_gradients import apply_scaled_gradients
from atelier.training.loop.noise import sample_timesteps
from atelier.training.loop.recipe import Losses, Recipe
from atelier.training.recipes import dreambooth
from atelier.training.recipes.companions import role_of
from atelier.training.recipes.dreambooth import Parts, TrainingData

COMPANION_SHARE = 0.5
"""Share of the updates with companions. In the others the half learns alone, as it will be used alone."""
OTHER_ROLE = {"content": "style", "style": "content"}
LR_RATIO = {"content": 4.0, "style": 2.0}
"""Times a LoRA's learning rate. One factor is trained, the other frozen; and a thing is more to learn than a style."""


def half_recipe(
    model: BaseModel,
    adapters: AdapterSet,
    data: TrainingData,
    companions: Sequence[Sequence[Example]],
    config: TrainConfig,
    folder: Path,
    *,
    others: Parts = (),
) -> Recipe:
    """Train the half that the role owns, while the other one follows the companions."""
    role = role_of(config)
    plain = dreambooth.recipe(model, adapters, data, config, folder, others=others)
    text = PromptEmbeddingCache(model, adapters, config.clip_skip)
    text.precompute([*data.subject, *data.prior, *(example for one in companions for example in one)])
    each = max(1, config.batch // 4)   # of every companion set
    halves = [adapter for adapter in adapters if isinstance(adapter, BreakForMake)]

    def microstep(generator: torch.Generator, group: ProcessGroup = SINGLE_PROCESS) -> Losses:
        """One batch of the role's pictures; with companions, a share of the batches trains both halves."""
        together = torch.rand((), generator=generator).item() < COMPANION_SHARE
        for half in halves:   # stays so until the next microstep: gradient checkpointing runs the model again
            half.disabled_role = "" if together else OTHER_ROLE[role]
        batch = dreambooth.sample_subject_and_prior(model, data, config, generator)
        positions = group.shard(len(batch.examples))
        losses = dreambooth.losses(batch_losses(model, config, batch, text, positions), batch, positions, config)
        if not together:
            return losses
        others = companion_batch(companions, batch, each, generator)
        companion_losses = batch_losses(model, config, others, text, group.shard(len(others.examples)))
        return replace(losses, companion=companion_losses.sum() / len(others.examples))

    def alone(weights: AdapterSet) -> AdapterSet:
        """The weights with the other role's half at strength 0."""
        return scale_halves(weights, content=float(role == "content"), style=float(role == "style"))

    return replace(
        plain,
        microstep=microstep,
        stages=None,   # a microstep decides on the CPU which half learns
        validate=lambda weights: plain.validate(alone(weights)),
        preview=lambda weights, step, prompt: plain.preview(alone(weights), step, prompt),
        measure=lambda weights, step: plain.measure(alone(weights), step),
        companions=[half.trainable_half(OTHER_ROLE[role]) for half in halves],
        lr_ratio=LR_RATIO[role],
        finalize=alone,
    )


def companion_batch(
    sets: Sequence[Sequence[Example]], batch: Batch, each: int, generator: torch.Generator
) -> Batch:
    """``each`` pictures of every set, with the noise and timesteps of the batch's first pictures.

    Shared noise makes the two losses differ by what is shown alone. Pictures of another size get noise of their own.
    """
    examples = [example for one in sets for example in sample_examples(one, each, generator)]
    sampled = sample_batch(examples, batch.timesteps[:each].repeat(len(sets)), generator)
    shared = [batch.noise[i % each] for i in range(len(examples))]
    noise = [theirs if theirs.shape == own.shape else own for theirs, own in zip(shared, sampled.noise, strict=True)]
    return replace(sampled, noise=noise)


def joint_recipe(
    model: BaseModel, adapters: AdapterSet, content: Sequence[Example], style: Sequence[Example], config: TrainConfig
) -> Recipe:
    """Train both halves together on both sets of pictures, with scaled gradients."""
    text = PromptEmbeddingCache(model, adapters, config.clip_skip)

    def microstep(generator: torch.Generator) -> Losses:
        """The sum of the mean losses on a content batch and on a style batch."""
        batches = two_batches(model, content, style, config.batch, generator)
        content_loss, style_loss = (batch_losses(model, config, batch, text).mean() for batch in batches)
        return Losses(content_loss + style_loss, torch.zeros_like(style_loss))

    return Recipe(
        adapters=adapters,
        mount=lambda: mount(model.models(), Mix(((adapters, 1.0),))),
        microstep=microstep,
        reshape_gradients=lambda: apply_scaled_gradients(adapters),
    )


def two_batches(
    model: BaseModel, content: Sequence[Example], style: Sequence[Example], count: int, generator: torch.Generator
) -> tuple[Batch, Batch]:
    """A batch of each, with the same noise and timesteps at the same positions."""
    timesteps = sample_timesteps(count, model.scheduler.config.num_train_timesteps, generator)
    batch = sample_batch(sample_examples(content, count, generator), timesteps, generator)
    return batch, companion_batch([style], batch, count, generator)

