"""Two adapters into one: ``atelier make``. Some methods compute, others train a little on both sets of pictures."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.adapters.attach.mount import mounted
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.fusion.break_for_make_halves import unite
from atelier.adapters.fusion.pairwise import added, as_lora, averaged, projected
from atelier.adapters.fusion.ziplora import overlap, zipped
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.events import Event
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.loop.batch import Batch, PromptEmbeddingCache, answer, show
from atelier.training.loop.loop import Controls, Training
from atelier.training.loop.optimizer_step import accelerator_for
from atelier.training.loop.recipe import Losses, Recipe
from atelier.training.recipes.break_for_make import make_recipe, two_batches

STEPS = {"break-for-make": 100, "zip": 100, "sum": 0, "np": 0, "k": 0}
"""Methods, each with its number of training steps; only where that is not 0 are the pictures needed."""
APART = 0.01      # weight of ZipLoRA's penalty, and its learning rate, as its authors have them
ZIP_LR = 0.01


@dataclass(frozen=True, slots=True)
class Part:
    """The content or the style."""

    adapters: AdapterSet
    examples: Sequence[Example] = ()   # what it learned from: for methods that train


def make(
    model: BaseModel, content: Part, style: Part, method: str, config: TrainConfig | None = None
) -> Iterator[Event | AdapterSet]:
    """Say what happens, and at last give one adapter: a plain LoRA, or of the kind split for ``break-for-make``.

    Args:
        model: the base model of both.
        content: what is to be drawn.
        style: how it is to be drawn.
        method: a key of ``STEPS``.
        config: for methods that train; None leaves ``break-for-make`` without its training.

    Raises:
        SettingError: there is no such method, or it can't do without training.
        BasisError: ``break-for-make`` needs two halves that fit together.
        MountError: one of them does not fit the base model.
    """
    models, parts = model.models(), (content.adapters, style.adapters)
    match method:
        case "break-for-make":
            united = unite(*parts).requires_grad_(True)
            if config is not None:
                recipe = make_recipe(model, united, content.examples, style.examples, config)
                united = yield from _train(model, recipe, config)
            yield united.requires_grad_(False)
        case "zip":
            if config is None:
                raise SettingError("zip learns its mixers, so it needs at least 1 step.")
            mixers = zipped(models, *parts)
            yield as_lora(models, (yield from _train(model, zip_recipe(model, mixers, content, style, config), config)))
        case "sum":
            yield added(models, *parts)
        case "np":
            yield projected(models, *parts)
        case "k":
            yield averaged(models, *parts)
        case _:
            raise SettingError(f"There is no method {method!r}. The methods are: {', '.join(STEPS)}.")


def training_config(method: str, *, steps: int, batch: int, lr: float, seed: int) -> TrainConfig:
    """The recipe of a method's own training: short, so nothing is saved, drawn or measured on the way."""
    return TrainConfig(
        steps=steps, batch=batch, lr=ZIP_LR if method == "zip" else lr, seed=seed, warmup=0, weight_decay=0.0,
        validate_every=0, preview_every=0, checkpoint_every=0, keep_best=False,
    )   # fmt: skip


def zip_recipe(model: BaseModel, mixers: AdapterSet, content: Part, style: Part, config: TrainConfig) -> Recipe:
    """Teach ZipLoRA's mixers to answer each adapter's prompts as it does alone, and to keep apart."""
    text = PromptEmbeddingCache(model, mixers)

    def microstep(generator: torch.Generator) -> Losses:
        batches = two_batches(model, content.examples, style.examples, config.batch, generator)
        unlike = torch.stack([
            _unlike(model, batch, text, mixers, part.adapters)
            for batch, part in zip(batches, (content, style), strict=True)
        ])   # fmt: skip
        return Losses(unlike.sum(), APART * overlap(mixers))

    return Recipe(mixers, nullcontext, microstep)   # mounted inside, in turn with those it is to be like


def _unlike(model: BaseModel, batch: Batch, text: PromptEmbeddingCache, ours: AdapterSet, theirs: AdapterSet) -> Tensor:
    """Mean squared difference between what the model answers with either."""
    with torch.no_grad(), mounted(model.models(), Mix(((theirs, 1.0),))):
        goals = [answer(model, shown) for shown in show(model, batch, text)]
    with mounted(model.models(), Mix(((ours, 1.0),))):
        found = [answer(model, shown) for shown in show(model, batch, text)]
    return torch.stack([F.mse_loss(a.float(), b.float()) for a, b in zip(found, goals, strict=True)]).mean()


def _train(model: BaseModel, recipe: Recipe, config: TrainConfig) -> Generator[Event, None, AdapterSet]:
    training = Training(recipe, config, Path(), accelerator_for(model))
    yield from training.events(Controls(_silent, lambda: False))
    assert training.result is not None
    return training.result


def _silent(command: str) -> None:
    """Nobody gives commands to a training of a minute."""
