"""How a run uses the machine it is on: precision and memory savings, chosen once and stored beside its recipe.

A run that is resumed on a busy machine must not choose otherwise, or its weights would not be those of an
uninterrupted run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import tomli_w
import torch

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.parse import parse_toml
from atelier.training.base_models.identify import identify
from atelier.training.base_models.precision import choose_precision
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs.memory_savings import describe_savings, fit_to_memory, memory_shortage, next_saving

PLAN, PRECISION = "plan.toml", "precision.txt"
# The fields that savings change.
_SAVINGS = ("record", "gradient_checkpointing", "batch", "accumulate", "base_in_8_bits")


def run_precision(config: TrainConfig, folder: RunFolder, device: torch.device) -> str:
    """The precision that the recipe names; for ``auto`` the fastest on this device, measured once."""
    if config.precision != "auto":
        return config.precision
    path = folder.path / PRECISION
    if not path.exists():
        info = identify(config.base, config.base_options)
        chosen = choose_precision(device, info.channels, info.resolution // info.vae_scale_factor)
        atomic_write(path, chosen.encode())
    return path.read_text(encoding="utf-8")


def plan_run(
    config: TrainConfig, folder: RunFolder, device: torch.device, processes: int = 1
) -> tuple[TrainConfig, str]:
    """The run with the savings that make it fit where ``processes`` share a batch, and a warning that names them.

    Raises:
        BaseError: it does not fit even with all savings.
    """
    if (folder.path / PLAN).exists():
        return _with_plan(config, folder), ""
    fitting, warning = fit_to_memory(config, run_precision(config, folder, device), device, processes)
    if warning:
        _write_plan(folder, fitting)
    return fitting, warning


class NextPlan(NamedTuple):
    """How a run goes on that ran out of memory."""

    shortage: str   # a sentence on what was needed and what is free
    savings: str    # what it does to need less, in words; empty where nothing is left to do


def plan_after_out_of_memory(folder: RunFolder, device: torch.device) -> NextPlan:
    """Store the plan with one more saving, for the restart of a run that ran out of memory."""
    config = _with_plan(folder.config(), folder)   # not `plan_run`: it would measure while there is no memory
    shortage = memory_shortage(config, run_precision(config, folder, device), device)
    smaller = next_saving(config, device)
    if smaller is None:
        return NextPlan(shortage, "")
    _write_plan(folder, smaller)
    return NextPlan(shortage, describe_savings(config, smaller))


def _with_plan(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    path = folder.path / PLAN
    return replace(config, **parse_toml(path.read_text(encoding="utf-8"))) if path.exists() else config


def _write_plan(folder: RunFolder, config: TrainConfig) -> None:
    plan = tomli_w.dumps({name: getattr(config, name) for name in _SAVINGS})
    atomic_write(folder.path / PLAN, plan.encode())
