"""Checkpoints: everything a run needs to continue as if it had not been interrupted.

Two are kept, with checksums: where the newer one is damaged, the older one is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.adapters.core.atomic_write import atomic_folder
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.parse import parse_json
from atelier.training.loop.optimizer_state import read_optimizer, write_optimizer

VERSION = 2   # of the files: 1 had no version and no checksums
_PREFIX, _STATE, _VERSION_KEY = "step-", "state.json", "version"
_TENSORS = ("weights", "average", "best")
_NUMBERS = ("step", "best_step", "best_loss", "scaler")
_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says why, as the end of a sentence."""


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
    """Write a complete checkpoint; it and the one before it are kept.

    Where this step has been written before, as in a pause right after a checkpoint, that one stays: it is the same.
    """
    path = folder / f"{_PREFIX}{state.step:06d}"
    if not (path.exists() and _is_sound(path)):
        with atomic_folder(path, replace=True) as partial:
            _write_files(partial, state, run=folder.parent.name)
    # Later ones belong to an attempt that was given up; hidden ones were begun by a process that was killed.
    every = list_checkpoints(folder)
    kept = every[max(0, every.index(path) - 1) : every.index(path) + 1]
    for old in every:
        if old not in kept:
            old.rename(old.with_name(f".{old.name}"))   # no reader finds half of it
    for rest in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(rest, ignore_errors=True)
    return path


def read_newest(folder: Path, report: Callable[[str], object] = lambda _: None) -> TrainingState | None:
    """Read the newest checkpoint that is whole; None when there is none.

    Args:
        folder: the run's checkpoints.
        report: told of each newer one that is damaged, in a sentence.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            message = f"The checkpoint {path.name} can't be used: {error}. An older one is tried."
            _log.warning(message)
            report(message)
    return None


def read(path: Path) -> TrainingState:
    """Read one checkpoint: every file is the one that was written with it.

    Raises:
        CheckpointError: it is damaged, of another run, or of a newer version of Atelier.
    """
    try:
        values = parse_json((path / _STATE).read_text(encoding="utf-8"))
        if _VERSION_KEY in values:   # else written by version 0.1, which had no checksums
            values = _checked_values(path, values)
        tensors = {name: load_file(path / f"{name}.safetensors") for name in _TENSORS}
        generator = load_file(path / "generator.safetensors")["generator"]
        return TrainingState(generator=generator, optimizer=read_optimizer(path), **tensors, **values)
    except CheckpointError:
        raise
    except Exception as error:   # whatever is wrong with this one, the one before may be good
        raise CheckpointError(f"it is damaged ({error})") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first. Partial ones have another name until they are whole."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def _is_sound(path: Path) -> bool:
    try:
        read(path)
    except CheckpointError:
        return False
    return True


def _write_files(folder: Path, state: TrainingState, run: str) -> None:
    """Write all files of a checkpoint; the last one has the checksums of the others, and one of its own."""
    for name in _TENSORS:
        save_file(getattr(state, name), folder / f"{name}.safetensors")
    save_file({"generator": state.generator}, folder / "generator.safetensors")
    # From the CPU, so that a run can continue where that device is not: on another card, or on none.
    write_optimizer(folder, state.optimizer)
    numbers = {name: getattr(state, name) for name in _NUMBERS}
    values = {_VERSION_KEY: VERSION, "run": run, "files": _checksums(folder), **numbers}
    (folder / _STATE).write_text(json.dumps({**values, "sha256": _checksum(values)}), encoding="utf-8")


def _checked_values(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a checkpoint, once it is certain that all of its files belong together.

    Raises:
        CheckpointError: see :func:`read`.
    """
    if values.pop("sha256", None) != _checksum(values):
        raise CheckpointError(f"{_STATE} is damaged")
    if values[_VERSION_KEY] > VERSION:
        raise CheckpointError("it was written by a newer version of Atelier; update Atelier to resume from it")
    if values["run"] != path.parent.parent.name or path.name != f"{_PREFIX}{values['step']:06d}":
        raise CheckpointError(f"it belongs to step {values['step']} of the run {values['run']}")
    found, written = _checksums(path), values["files"]
    if wrong := [name for name in sorted({*found, *written}) if found.get(name) != written.get(name)]:
        raise CheckpointError(f"not as they were written: {', '.join(wrong)}")
    return {name: values[name] for name in _NUMBERS}


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint but the one that lists them, by name."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.name != _STATE:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
