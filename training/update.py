"""One update of the weights from their gradients, and what float16 gradients need for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.utils import get_total_norm

from atelier.adapters.gradients import correct

from .base_model import BaseModel
from .config import TrainConfig
from .recipe import Recipe


def move(recipe: Recipe, config: TrainConfig, accelerator: Accelerator, optimizer: Any) -> bool:
    """Move the weights by their gradients; where one of these is not finite they stay, and the answer is False.

    A finite loss can have such gradients: clipping would make all of them nan, and the update every weight.
    """
    parameters = list(recipe.adapters.parameters())
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not math.isfinite(norm.item()):
        if accelerator.scaler is not None:
            optimizer.step()   # which leaves the weights alone too, and has the scaler scale less
        return False
    if config.whole_gradient:
        correct(recipe.adapters)
    recipe.reshape_gradients()
    if config.clip:
        accelerator.clip_grad_norm_(parameters, config.clip)
    optimizer.step()
    return True


def accelerator_for(model: BaseModel) -> Accelerator:
    """What moves gradients on the model's device; float16 gradients need scaling."""
    mixed = "fp16" if model.dtype == torch.float16 else "no"
    return Accelerator(cpu=model.device.type == "cpu", mixed_precision=mixed)
