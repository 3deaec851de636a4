"""How a run uses the machine it is on: precision and memory, chosen once and kept beside its recipe.

A run that is resumed on a busy machine must not choose otherwise, or its weights would not be those of an
uninterrupted run.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace

import tomli_w
import torch

from atelier.training.base_models.identify import identify
from atelier.training.base_models.precision import choose_precision
from atelier.training.config.run_folder import RunFolder, write_text
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs.memory_savings import cheaper, fitting, levers, shortage

PLAN, PRECISION = "plan.toml", "precision.txt"
_LEVERS = ("gradient_checkpointing", "batch", "accumulate", "base_in_8_bits")


def precision(config: TrainConfig, folder: RunFolder, device: torch.device) -> str:
    """The precision that the recipe names, or the one that was measured to be the fastest here."""
    if config.precision != "auto":
        return config.precision
    kept = folder.path / PRECISION
    if not kept.exists():
        info = identify(config.base)
        write_text(kept, choose_precision(device, info.channels, info.resolution // info.factor))
    return kept.read_text(encoding="utf-8")


def planned(
    config: TrainConfig, folder: RunFolder, device: torch.device, processes: int = 1
) -> tuple[TrainConfig, str]:
    """The run with what it does to fit into memory, and what to tell about it, where ``processes`` share a batch.

    Raises:
        BaseError: it fits in no way.
    """
    if (folder.path / PLAN).exists():
        return _kept(config, folder), ""
    chosen, told = fitting(config, precision(config, folder, device), device, processes)
    if told:
        _keep(folder, chosen)
    return chosen, told


def ran_out(folder: RunFolder, device: torch.device) -> str:
    """Memory ran out: keep the next more sparing plan for a resume; say what was needed and what there is."""
    config = _kept(folder.config(), folder)   # not `planned`: it would look for room while there is none
    said = shortage(config, precision(config, folder, device), device)
    sparing = cheaper(config)
    if sparing is None:
        return f"{said} Use a smaller resolution or base model."
    _keep(folder, sparing)
    return f"{said} Resume it to continue with less memory: {levers(config, sparing)}."


def _kept(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    path = folder.path / PLAN
    return replace(config, **tomllib.loads(path.read_text(encoding="utf-8"))) if path.exists() else config


def _keep(folder: RunFolder, config: TrainConfig) -> None:
    write_text(folder.path / PLAN, tomli_w.dumps({name: getattr(config, name) for name in _LEVERS}))
