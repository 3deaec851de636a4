"""Break-for-Make (Xu et al. 2024, arXiv 2403.19456): teach one half of a split adapter, or both together in the end.

A content's own half learns from its pictures. In every second update, by chance, the other half is there as well and
learns, a tenth as fast, from companions in three styles; at the end it is thrown away. So with a style. The two are put
together without training (``adapters/fusion/break_for_make_halves.py``); a short training on both sets of pictures
can follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from atelier.adapters.attach.mount import mounted
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.fusion.break_for_make_halves import strengthened
from atelier.adapters.initialization.lora_pro import precondition
from atelier.adapters.kinds.break_for_make import Split
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.loop.batch import Batch, PromptEmbeddingCache, draw_batch, pick, weighted_errors
from atelier.training.loop.distributed import SINGLE_PROCESS, ProcessGroup
from atelier.training.loop.noise import draw_timesteps
from atelier.training.loop.recipe import Losses, Recipe
from atelier.training.recipes import dreambooth
from atelier.training.recipes.companions import role_of
from atelier.training.recipes.dreambooth import Dataset

TOGETHER = 0.5
"""Share of the updates with companions. In the others the half learns alone: that is how its own file will draw."""
OTHER = {"content": "style", "style": "content"}
SPEED = {"content": 4.0, "style": 2.0}
"""Times a LoRA's learning rate. One factor moves, the other is frozen; and a thing is more to learn than a style."""


def half_recipe(
    model: BaseModel, adapters: AdapterSet, data: Dataset, companions: Sequence[Sequence[Example]], config: TrainConfig,
    folder: Path,
) -> Recipe:   # fmt: skip
    """Teach the half that the role owns, while the other one follows the companions."""
    role = role_of(config)
    plain = dreambooth.recipe(model, adapters, data, config, folder)
    text = PromptEmbeddingCache(model, adapters)
    text.remember([*data.subject, *data.prior, *(example for one in companions for example in one)])
    each = max(1, config.batch // 4)   # of every companion set
    halves = [adapter for adapter in adapters if isinstance(adapter, Split)]

    def microstep(generator: torch.Generator, group: ProcessGroup = SINGLE_PROCESS) -> Losses:
        together = torch.rand((), generator=generator).item() < TOGETHER
        for half in halves:   # stays so until the next microstep: gradient checkpointing runs the model again
            half.muted = "" if together else OTHER[role]
        batch = dreambooth.lesson(model, data, config, generator)
        mine = group.shard(len(batch.examples))
        losses = dreambooth.losses(weighted_errors(model, config, batch, text, mine), batch, mine, config)
        if not together:
            return losses
        beside = companion_batch(companions, batch, each, generator)
        theirs = weighted_errors(model, config, beside, text, group.shard(len(beside.examples)))
        return replace(losses, companion=theirs.sum() / len(beside.examples))

    def alone(weights: AdapterSet) -> AdapterSet:
        return strengthened(weights, content=float(role == "content"), style=float(role == "style"))

    return replace(
        plain,
        microstep=microstep,
        parts=None,   # a microstep decides on the CPU who learns
        validate=lambda weights: plain.validate(alone(weights)),
        preview=lambda weights, step, prompt: plain.preview(alone(weights), step, prompt),
        companions=[half.owned_by(OTHER[role]) for half in halves],
        speed=SPEED[role],
        kept=alone,
    )


def companion_batch(
    sets: Sequence[Sequence[Example]], batch: Batch, each: int, generator: torch.Generator
) -> Batch:
    """``each`` pictures of every set, with the noise and timesteps of the batch's first pictures.

    Shared noise makes the two losses differ by what is shown alone. Pictures of another size get noise of their own.
    """
    picked = [example for one in sets for example in pick(one, each, generator)]
    drawn = draw_batch(picked, batch.timesteps[:each].repeat(len(sets)), generator)
    shared = [batch.noise[i % each] for i in range(len(picked))]
    noise = [theirs if theirs.shape == own.shape else own for theirs, own in zip(shared, drawn.noise, strict=True)]
    return replace(drawn, noise=noise)


def make_recipe(
    model: BaseModel, adapters: AdapterSet, content: Sequence[Example], style: Sequence[Example], config: TrainConfig
) -> Recipe:
    """Train both halves together on both sets of pictures, with scaled gradients."""
    text = PromptEmbeddingCache(model, adapters)

    def microstep(generator: torch.Generator) -> Losses:
        mine, theirs = two_batches(model, content, style, config.batch, generator)
        of_content, of_style = (weighted_errors(model, config, batch, text).mean() for batch in (mine, theirs))
        return Losses(of_content + of_style, torch.zeros_like(of_style))

    return Recipe(
        adapters=adapters,
        attached=lambda: mounted(model.models(), Mix(((adapters, 1.0),))),
        microstep=microstep,
        reshape_gradients=lambda: precondition(adapters),
    )


def two_batches(
    model: BaseModel, content: Sequence[Example], style: Sequence[Example], count: int, generator: torch.Generator
) -> tuple[Batch, Batch]:
    """Pictures of both, picture by picture with the same noise and timesteps."""
    timesteps = draw_timesteps(count, model.scheduler.config.num_train_timesteps, generator)
    mine = draw_batch(pick(content, count, generator), timesteps, generator)
    return mine, companion_batch([style], mine, count, generator)

