"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from atelier.adapters.core.base import AdapterSet
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.factor_gradients import lora_plus_groups

COMPANION_LR_RATIO = 0.1
"""Break-for-Make's: a companion that learned as fast as the others would take over part of what they are to learn."""


def make_optimizer(
    config: TrainConfig, adapters: AdapterSet, companions: Sequence[nn.Parameter] = (), lr_ratio: float = 1.0
) -> torch.optim.Optimizer:
    """Make the optimizer that the recipe names; where a group has a ``ratio``, its learning rate is multiplied.

    ``companions`` learn a tenth as fast as the others, and these ``speed`` times as fast as the recipe's rate.
    """
    parameters: Any = list(adapters.parameters())
    if companions:
        apart = {id(p) for p in companions}
        own = [p for p in parameters if id(p) not in apart]
        parameters = [{"params": own, "ratio": lr_ratio},
                      {"params": list(companions), "ratio": lr_ratio * COMPANION_LR_RATIO}]   # fmt: skip
    elif config.up_speed != 1:
        parameters = lora_plus_groups(adapters, config.up_speed)
    if config.optimizer == "prodigy":
        from atelier.training.loop.prodigy import Prodigy

        make: Any = Prodigy   # its annotations ask for whole numbers
        return make(parameters, lr=config.lr, weight_decay=config.weight_decay, safeguard_warmup=True)
    if config.optimizer in ("galore", "galore-8bit"):
        from atelier.training.loop.galore import Galore

        return Galore(parameters, config.lr, eight_bits=config.optimizer == "galore-8bit",
                      weight_decay=config.weight_decay)   # fmt: skip
    if config.optimizer == "lisa":
        from atelier.training.loop.lisa import Lisa

        return Lisa(parameters, config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of ``step`` (1-based): a linear warm-up, then the schedule down to a hundredth of ``lr``."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    match config.lr_schedule:
        case "linear":
            factor = 1 - done
        case "cosine":
            factor = (1 + math.cos(math.pi * done)) / 2
        case _:
            factor = 1.0
    return config.lr * (0.01 + 0.99 * factor)
