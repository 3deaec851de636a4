"""Teach a base model's gates (AutoLoRA, arXiv 2508.02107). Gates alone learn; base and adapters stay as they are.

From lessons, which any home has: two adapters are there, and the picture of the first is to be drawn from its own
prompt, and not from the second's. So a gate must read what is asked for.

From scenes, where the truth of a mix is known (``gate_dataset.py``): all adapters are asked for, and the picture shows
all of them.
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
from atelier.adapters.fusion.live import Fusion, Part, fusing
from atelier.adapters.fusion.methods import as_one
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop.batch import Batch, PromptEmbeddingCache, draw_batch, passes, pick
from atelier.training.loop.losses import hinge, per_sample
from atelier.training.loop.noise import draw_timesteps
from atelier.training.loop.recipe import Losses, Recipe


@dataclass(frozen=True, slots=True)
class Lesson:
    """An adapter and what it was taught with; its captions call it."""

    adapters: AdapterSet
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Scene:
    """Adapters and pictures of all that they were taught, at once; the captions call every one of them."""

    adapters: tuple[AdapterSet, ...]
    examples: Sequence[Example]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig(Settings):
    """How gates are taught."""

    margin: float = setting(1.1, "How much worse than the base's the first picture is to be from the second's prompt.",
                            low=0, high=10)
    hinge_weight: float = setting(1.0, "Weight of that; 0 teaches from the first prompt alone.", low=0, high=100)
    wordless: float = setting(0.3, "Share of pictures shown without their prompt.", low=0, high=1)
    common_rank: int = setting(2, "Rank of the third adapter, the best of this rank for both together; 0: none.",
                               low=0, high=64)


def gate_recipe(
    model: BaseModel, gates: GateSet, lessons: Sequence[Lesson], config: TrainConfig, own: GateConfig = GateConfig()
) -> Recipe:   # fmt: skip
    """Tie base model, gates and lessons together for the loop.

    Raises:
        SettingError: fewer than two lessons.
    """
    if len(lessons) < 2:
        raise SettingError(f"Gates learn from at least two adapters with their pictures; {len(lessons)} found here. "
                           "Teach more, or name a home that has them.")
    text = PromptEmbeddingCache(model, lessons[0].adapters)
    empty = tokenize(model, [""])[0]
    count = model.scheduler.config.num_train_timesteps
    commons: dict[tuple[int, int], AdapterSet] = {}

    def parts(pair: tuple[int, int]) -> tuple[Part, ...]:
        both = tuple(Part(lessons[i].adapters) for i in pair)
        if not own.common_rank:
            return both
        key = (min(pair), max(pair))
        if key not in commons:
            commons[key] = common(model, [lessons[i].adapters for i in key], own.common_rank)
        return (*both, Part(commons[key]))

    def microstep(generator: torch.Generator) -> Losses:
        pair = two_of(len(lessons), generator)
        mine = batch_of(lessons[pair[0]].examples, config.batch, count, generator)
        asked = without_words(mine, empty, own.wordless, generator)
        other = batch_of(mine.examples, config.batch, count, generator)
        other = replace(other, examples=with_words_of(other.examples, lessons[pair[1]].examples, generator))
        acting = Fusion(parts(pair), gates)
        right = errors(model, asked, text, fusing(model.models(), acting)).mean()
        if not own.hinge_weight:
            return Losses(right, torch.zeros_like(right))
        with torch.no_grad():
            of_base = errors(model, other, text, nullcontext())
        wrong = errors(model, other, text, fusing(model.models(), acting))
        return Losses(right, own.hinge_weight * hinge(wrong, of_base, own.margin).mean())

    learner: Any = gates   # the loop asks of it what it asks of adapters: parameters and tensors
    return Recipe(learner, nullcontext, microstep)


def scene_recipe(model: BaseModel, gates: GateSet, scenes: Sequence[Scene], config: TrainConfig) -> Recipe:
    """Tie base model, gates and scenes together for the loop.

    Errors are in units of what the base alone does wrong with the same picture, noise and prompt. So all timesteps
    count alike: what is drawn is decided where the noise is strong, and there errors are smallest.
    """
    text = PromptEmbeddingCache(model, scenes[0].adapters[0])
    count = model.scheduler.config.num_train_timesteps

    def microstep(generator: torch.Generator) -> Losses:
        scene = scenes[int(torch.randint(len(scenes), (1,), generator=generator))]
        shown = batch_of(scene.examples, config.batch, count, generator)
        with torch.no_grad():
            of_base = errors(model, shown, text, nullcontext())
        acting = Fusion(tuple(Part(one) for one in scene.adapters), gates)
        loss = (errors(model, shown, text, fusing(model.models(), acting)) / of_base).mean()
        return Losses(loss, torch.zeros_like(loss))

    learner: Any = gates
    return Recipe(learner, nullcontext, microstep)


def common(model: BaseModel, adapters: Sequence[AdapterSet], rank: int) -> AdapterSet:
    """The low-rank pair nearest to the sum of all: our reading of AutoLoRA's global LoRA, whose code is not public.

    It is there while gates learn, as the authors have it, and not when they are used.
    """
    return as_one(model.models(), [Part(one) for one in adapters], "svd", rank)


def two_of(count: int, generator: torch.Generator) -> tuple[int, int]:
    """Two different places."""
    first, second = torch.randperm(count, generator=generator)[:2].tolist()
    return first, second


def batch_of(examples: Sequence[Example], size: int, count: int, generator: torch.Generator) -> Batch:
    """Some examples with fresh noise and timesteps."""
    return draw_batch(pick(examples, size, generator), draw_timesteps(size, count, generator), generator)


def without_words(batch: Batch, empty: Tensor, share: float, generator: torch.Generator) -> Batch:
    """The batch with some prompts empty."""
    chosen = (torch.rand(len(batch.examples), generator=generator) < share).tolist()
    shown = [replace(example, tokens=empty) if drop else example
             for example, drop in zip(batch.examples, chosen, strict=True)]   # fmt: skip
    return replace(batch, examples=shown)


def with_words_of(
    examples: Sequence[Example], others: Sequence[Example], generator: torch.Generator
) -> list[Example]:
    """The same pictures with captions of other ones."""
    places = torch.randint(len(others), (len(examples),), generator=generator).tolist()
    return [replace(example, tokens=others[i].tokens) for example, i in zip(examples, places, strict=True)]


def errors(
    model: BaseModel, batch: Batch, text: PromptEmbeddingCache, attached: AbstractContextManager[None]
) -> Tensor:
    """Mean squared error of each picture ``[B]``, in the batch's order."""
    found: dict[int, Tensor] = {}
    with attached:
        for members, noisy, prediction in passes(model, batch, text):
            found.update(zip(members, per_sample(prediction, noisy.target), strict=True))
    return torch.stack([found[i] for i in range(len(batch.examples))])
