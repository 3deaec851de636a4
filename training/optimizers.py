"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch

from .config import TrainConfig


def make_optimizer(config: TrainConfig, parameters: list[Any]) -> torch.optim.Optimizer:
    """Make the optimizer that the recipe names."""
    if config.optimizer == "prodigy":
        import prodigyopt

        make: Any = prodigyopt.Prodigy   # its annotations ask for whole numbers
        return make(parameters, lr=config.lr, weight_decay=config.weight_decay, safeguard_warmup=True)
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
