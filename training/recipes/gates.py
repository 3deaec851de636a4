"""Train a base model's gates (AutoLoRA, arXiv 2508.02107). Only gates learn; base and adapters stay as they are.

From adapters with their own examples, which any home has: two adapters are active, and the picture of the first is to
be predicted with its own prompt and not with the second's. So a gate must read what the prompt asks for.

From scenes, where the true picture of a mix is known (``gate_dataset.py``): the prompt asks for all adapters, and the
picture shows all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.settings import SettingError, Settings, setting
from atelier.adapters.fusion.gates import GateSet
from atelier.adapters.fusion.live import Fusion, WeightedAdapter, mount_fusion
from atelier.adapters.fusion.methods import fuse_adapters
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop.batch import (
    AdapterExamples,
    Batch,
    PromptEmbeddingCache,
    predictions,
    sample_batch,
    sample_examples,
)
from atelier.training.loop.losses import hinge_loss, mse_per_sample
from atelier.training.loop.noise import sample_timesteps
from atelier.training.loop.recipe import Losses, Recipe


@dataclass(frozen=True, slots=True)
class Scene:
    """Adapters, and pictures that show what all of them were trained on; the captions hold all trigger words."""

    adapters: tuple[AdapterSet, ...]
    examples: Sequence[Example]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig(Settings):
    """How gates are trained."""

    margin: float = setting(1.1, "Margin: how much worse than the base model the first picture should be predicted "
                                 "from the second prompt.",
                            low=0, high=10)
    hinge_weight: float = setting(1.0, "Weight of the margin loss. 0 turns it off.", low=0, high=100)
    wordless: float = setting(0.3, "Share of pictures trained without their prompt.", low=0, high=1)
    common_rank: int = setting(2, "Rank of the third adapter, the best approximation of both together. 0 means none.",
                               low=0, high=64)


def gate_recipe(
    model: BaseModel,
    gates: GateSet,
    lessons: Sequence[AdapterExamples],
    config: TrainConfig,
    own: GateConfig = GateConfig(),
) -> Recipe:
    """The recipe that trains gates on pairs of adapters with their own examples.

    Raises:
        SettingError: fewer than two adapters.
    """
    if len(lessons) < 2:
        raise SettingError(f"Training gates needs at least two adapters with their pictures, but only {len(lessons)} "
                           "were found. Train more adapters, or choose a home that has them.")
    text = PromptEmbeddingCache(model, lessons[0].adapters)
    empty = tokenize(model, [""])[0]
    count = model.scheduler.config.num_train_timesteps
    commons: dict[tuple[int, int], AdapterSet] = {}

    def parts(pair: tuple[int, int]) -> tuple[WeightedAdapter, ...]:
        """The pair's adapters, and with ``common_rank`` the one they have in common, made when first needed."""
        both = tuple(WeightedAdapter(lessons[i].adapters) for i in pair)
        if not own.common_rank:
            return both
        key = (min(pair), max(pair))
        if key not in commons:
            commons[key] = common_adapter(model, [lessons[i].adapters for i in key], own.common_rank)
        return (*both, WeightedAdapter(commons[key]))

    def microstep(generator: torch.Generator) -> Losses:
        """Loss of the pair on the first one's prompts; the hinge on the other's prompts is the second term."""
        pair = random_pair(len(lessons), generator)
        batch = random_batch(lessons[pair[0]].examples, config.batch, count, generator)
        own_prompts = drop_captions(batch, empty, own.wordless, generator)
        other = random_batch(batch.examples, config.batch, count, generator)
        captions = exchange_captions(other.examples, lessons[pair[1]].examples, generator)
        other_prompts = replace(other, examples=captions)
        fusion = Fusion(parts(pair), gates)
        right = prediction_errors(model, own_prompts, text, mount_fusion(model.models(), fusion)).mean()
        if not own.hinge_weight:
            return Losses(right, torch.zeros_like(right))
        with torch.no_grad():
            base_errors = prediction_errors(model, other_prompts, text, nullcontext())
        wrong = prediction_errors(model, other_prompts, text, mount_fusion(model.models(), fusion))
        return Losses(right, own.hinge_weight * hinge_loss(wrong, base_errors, own.margin).mean())

    learner: Any = gates   # the loop asks of it what it asks of adapters: parameters and tensors
    return Recipe(learner, nullcontext, microstep)


def scene_recipe(model: BaseModel, gates: GateSet, scenes: Sequence[Scene], config: TrainConfig) -> Recipe:
    """The recipe that trains gates on scenes.

    Errors are in units of the base model's own error with the same picture, noise and prompt. So all timesteps count
    alike: what is drawn is decided where the noise is strong, and there errors are smallest.
    """
    text = PromptEmbeddingCache(model, scenes[0].adapters[0], config.clip_skip)
    count = model.scheduler.config.num_train_timesteps

    def microstep(generator: torch.Generator) -> Losses:
        """Mean error on one random scene, relative to the base model's."""
        scene = scenes[int(torch.randint(len(scenes), (1,), generator=generator))]
        batch = random_batch(scene.examples, config.batch, count, generator)
        with torch.no_grad():
            base_errors = prediction_errors(model, batch, text, nullcontext())
        fusion = Fusion(tuple(WeightedAdapter(one) for one in scene.adapters), gates)
        loss = (prediction_errors(model, batch, text, mount_fusion(model.models(), fusion)) / base_errors).mean()
        return Losses(loss, torch.zeros_like(loss))

    learner: Any = gates
    return Recipe(learner, nullcontext, microstep)


def common_adapter(model: BaseModel, adapters: Sequence[AdapterSet], rank: int) -> AdapterSet:
    """The low-rank pair nearest to the sum of all: our reading of AutoLoRA's global LoRA, whose code is not public.

    It is active while gates learn, as in the paper, and not when they are used.
    """
    return fuse_adapters(model.models(), [WeightedAdapter(one) for one in adapters], "svd", rank)


def random_pair(count: int, generator: torch.Generator) -> tuple[int, int]:
    """Two different indices below ``count``."""
    first, second = torch.randperm(count, generator=generator)[:2].tolist()
    return first, second


def random_batch(examples: Sequence[Example], size: int, count: int, generator: torch.Generator) -> Batch:
    """A batch of ``size`` random examples with noise and timesteps below ``count``."""
    return sample_batch(sample_examples(examples, size, generator), sample_timesteps(size, count, generator), generator)


def drop_captions(batch: Batch, empty: Tensor, share: float, generator: torch.Generator) -> Batch:
    """The batch with a random ``share`` of its captions empty."""
    chosen = (torch.rand(len(batch.examples), generator=generator) < share).tolist()
    examples = [replace(example, tokens=empty) if drop else example
                for example, drop in zip(batch.examples, chosen, strict=True)]   # fmt: skip
    return replace(batch, examples=examples)


def exchange_captions(
    examples: Sequence[Example], others: Sequence[Example], generator: torch.Generator
) -> list[Example]:
    """The same pictures with random captions of ``others``."""
    chosen = torch.randint(len(others), (len(examples),), generator=generator).tolist()
    return [replace(example, tokens=others[i].tokens) for example, i in zip(examples, chosen, strict=True)]


def prediction_errors(
    model: BaseModel, batch: Batch, text: PromptEmbeddingCache, mount: AbstractContextManager[None]
) -> Tensor:
    """Mean squared error of each picture ``[B]``, in the batch's order."""
    errors: dict[int, Tensor] = {}
    with mount:
        for positions, noisy, prediction in predictions(model, batch, text):
            errors.update(zip(positions, mse_per_sample(prediction, noisy.target), strict=True))
    return torch.stack([errors[i] for i in range(len(batch.examples))])
