"""Checkpoints: everything a run needs to continue as if it had not been interrupted."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.adapters.core.atomic_write import atomic_folder
from atelier.adapters.core.base import AdapterSet
from atelier.training.loop.optimizer_state import read_optimizer, write_optimizer

_PREFIX = "step-"


@dataclass(slots=True)
class TrainingState:
    """What changes from step to step, apart from the optimizer's own."""

    weights: dict[str, Tensor]                                   # the adapter being trained
    generator: Tensor                                            # state of the one random generator
    optimizer: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)     # EMA of the weights, when averaging
    best: dict[str, Tensor] = field(default_factory=dict)        # weights of the best validation so far
    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    scaler: dict[str, float] = field(default_factory=dict)       # of float16 gradients, where they are scaled


def cpu_copy(adapters: AdapterSet) -> dict[str, Tensor]:
    """An adapter's tensors on the CPU, as they are now."""
    return {key: value.detach().cpu().clone() for key, value in adapters.tensors().items()}


def write(folder: Path, state: TrainingState) -> Path:
    """Write a complete checkpoint and drop the older ones; a crash leaves the older ones.

    Where this step has been written before, as in a pause right after a checkpoint, that one stays: it is the same.
    """
    path = folder / f"{_PREFIX}{state.step:06d}"
    if path.exists() and _whole(path) is not None:
        return path
    with atomic_folder(path, replace=True) as partial:
        for name in ("weights", "average", "best"):
            save_file(getattr(state, name), partial / f"{name}.safetensors")
        save_file({"generator": state.generator}, partial / "generator.safetensors")
        # From the CPU, so that a run can continue where that device is not: on another card, or on none.
        write_optimizer(partial, state.optimizer)
        numbers = {name: getattr(state, name) for name in ("step", "best_step", "best_loss", "scaler")}
        (partial / "state.json").write_text(json.dumps(numbers), encoding="utf-8")
    # Older checkpoints, and what a process that was killed had begun.
    for old in (*_complete(folder), *folder.glob(f".{_PREFIX}*")):
        if old != path:
            shutil.rmtree(old)
    return path


def read_newest(folder: Path) -> TrainingState | None:
    """Read the newest checkpoint that is whole; None when there is none."""
    return next(filter(None, map(_whole, reversed(_complete(folder)))), None)


def _whole(path: Path) -> TrainingState | None:
    try:
        return _read(path)
    except Exception:   # whatever is wrong with this one, the one before may be good
        return None


def _read(path: Path) -> TrainingState:
    numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors = {name: load_file(path / f"{name}.safetensors") for name in ("weights", "average", "best")}
    return TrainingState(
        generator=load_file(path / "generator.safetensors")["generator"],
        optimizer=read_optimizer(path),
        **tensors,
        **numbers,
    )


def _complete(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first. Partial ones have another name until they are whole."""
    return sorted(folder.glob(f"{_PREFIX}*"))
