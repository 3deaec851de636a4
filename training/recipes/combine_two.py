"""A content adapter and a style adapter into one (``atelier make``), with or without a short training on both."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.fusion.break_for_make_halves import combine_halves
from atelier.adapters.fusion.pairwise import k_lora_mean, np_lora, sum_adapters, to_lora
from atelier.adapters.fusion.ziplora import create_ziplora, mixer_similarity
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.events import Event
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.batch import AdapterExamples, Batch, PromptEmbeddingCache, predict, unet_inputs
from atelier.training.loop.optimizer_step import make_accelerator
from atelier.training.loop.recipe import Losses, Recipe
from atelier.training.loop.training_loop import NO_CONTROLS, Training
from atelier.training.recipes.break_for_make import joint_recipe, two_batches

METHOD_STEPS = {"break-for-make": 100, "zip": 100, "sum": 0, "np": 0, "k": 0}
"""Methods, each with its number of training steps; only where that is not 0 are the pictures needed."""
OVERLAP_WEIGHT, ZIPLORA_LR = 0.01, 0.01   # weight of ZipLoRA's penalty and its learning rate, as in the paper


def combine_adapters(
    model: BaseModel, content: AdapterExamples, style: AdapterExamples, method: str, config: TrainConfig | None = None
) -> Iterator[Event | AdapterSet]:
    """Yield the events of a training, and at last one adapter: a plain LoRA, or a split one for ``break-for-make``.

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
            united = combine_halves(*parts).requires_grad_(True)
            if config is not None:
                recipe = joint_recipe(model, united, content.examples, style.examples, config)
                united = yield from _train(model, recipe, config)
            yield united.requires_grad_(False)
        case "zip":
            if config is None:
                raise SettingError("steps is 0, but the method zip needs training. Use at least 1 step.")
            mixers = create_ziplora(models, *parts)
            recipe = ziplora_recipe(model, mixers, content, style, config)
            yield to_lora(models, (yield from _train(model, recipe, config)))
        case "sum":
            yield sum_adapters(models, *parts)
        case "np":
            yield np_lora(models, *parts)
        case "k":
            yield k_lora_mean(models, *parts)
        case _:
            raise SettingError(f"There is no method {method!r}. The methods are: {', '.join(METHOD_STEPS)}.")


def training_config(method: str, *, steps: int, batch: int, lr: float, seed: int) -> TrainConfig:
    """The recipe of a method's own training: short, so without checkpoints, previews and validation."""
    return TrainConfig(
        steps=steps, batch=batch, lr=ZIPLORA_LR if method == "zip" else lr, seed=seed, warmup=0, weight_decay=0.0,
        validate_every=0, preview_every=0, checkpoint_every=0, keep_best=False,
    )   # fmt: skip


def ziplora_recipe(
    model: BaseModel, mixers: AdapterSet, content: AdapterExamples, style: AdapterExamples, config: TrainConfig
) -> Recipe:
    """Train ZipLoRA's mixers: with each adapter's prompts the UNet predicts what it does with that adapter alone."""
    text = PromptEmbeddingCache(model, mixers)

    def microstep(generator: torch.Generator) -> Losses:
        """The differences with both adapters' prompts; the mixers' similarity is the second loss."""
        batches = two_batches(model, content.examples, style.examples, config.batch, generator)
        differences = torch.stack([
            _output_difference(model, batch, text, mixers, part.adapters)
            for batch, part in zip(batches, (content, style), strict=True)
        ])   # fmt: skip
        return Losses(differences.sum(), OVERLAP_WEIGHT * mixer_similarity(mixers))

    return Recipe(mixers, nullcontext, microstep)   # mounted inside, in turn with the adapter it is compared with


def _output_difference(
    model: BaseModel, batch: Batch, text: PromptEmbeddingCache, mixers: AdapterSet, target: AdapterSet
) -> Tensor:
    """Mean squared difference between the UNet's predictions with either."""
    with torch.no_grad(), mount(model.models(), Mix(((target, 1.0),))):
        targets = [predict(model, inputs) for inputs in unet_inputs(model, batch, text)]
    with mount(model.models(), Mix(((mixers, 1.0),))):
        mixed = [predict(model, inputs) for inputs in unet_inputs(model, batch, text)]
    return torch.stack([F.mse_loss(a.float(), b.float()) for a, b in zip(mixed, targets, strict=True)]).mean()


def _train(model: BaseModel, recipe: Recipe, config: TrainConfig) -> Generator[Event, None, AdapterSet]:
    # A short training outside of any run's folder: nothing of it is kept but the result.
    brief = replace(config, snapshots=0, checkpoint_every=0)
    with TemporaryDirectory() as folder:
        training = Training(recipe, brief, Path(folder), make_accelerator(model))
        yield from training.events(NO_CONTROLS)
    assert training.result is not None
    return training.result
