"""One update of the weights from their gradients, with the loss scaling that float16 gradients need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.distributed import ProcessGroup
from atelier.training.loop.factor_gradients import apply_lora_pro
from atelier.training.loop.recipe import Losses, Recipe


def reduce_losses(
    losses: Sequence[Losses], parameters: Sequence[nn.Parameter], group: ProcessGroup
) -> tuple[float, float, float]:
    """Mean losses of some microsteps and the norm of the gradients: the one place where a step waits for the device.

    The gradients of all processes are added up on the way.
    """
    scalars = [_norm(parameters).to(losses[0].subject), *(x for each in losses for x in (each.subject, each.prior))]
    norm, *values = torch.stack(scalars).tolist()
    subject, prior = group.all_reduce([sum(values[i::2]) / len(losses) for i in range(2)], parameters)
    return subject, prior, norm if group.size == 1 else _norm(parameters).item()


def _norm(parameters: Sequence[Tensor]) -> Tensor:
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


def apply_gradients(
    recipe: Recipe, config: TrainConfig, accelerator: Accelerator, optimizer: Any, *, finite: bool
) -> None:
    """Update the weights from their gradients; where one of these is not ``finite`` nothing changes.

    A finite loss can have such gradients: clipping would make all of them nan, and the update every weight.
    """
    if not finite:
        if accelerator.scaler is not None:
            optimizer.step()   # skipped inside, too; it makes the scaler lower its scale
        return
    if config.whole_gradient:
        apply_lora_pro(recipe.adapters)
    recipe.reshape_gradients()
    if config.clip:
        accelerator.clip_grad_norm_(list(recipe.adapters.parameters()), config.clip)
    optimizer.step()


def make_accelerator(model: BaseModel) -> Accelerator:
    """The accelerator for the model's device; float16 gradients need scaling."""
    mixed = "fp16" if model.dtype == torch.float16 else "no"
    return Accelerator(cpu=model.device.type == "cpu", mixed_precision=mixed)
