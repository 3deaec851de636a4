"""Snapshots: the weights of some steps of a run, each an adapter file that can be drawn with, compared and kept.

Unlike a checkpoint, a snapshot holds nothing to resume from. They are spread evenly over the run; beside them stay the
steps that a person saved and those that a measure found best.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.native import save_adapter

FOLDER = "snapshots"
_SAVED = "-saved"   # of a step that a person saved: never dropped


def snapshot_steps(steps: int, count: int) -> list[int]:
    """The steps to keep: ``count`` of them, evenly spread, the last step of the run among them.

    >>> snapshot_steps(100, 4), snapshot_steps(3, 8), snapshot_steps(100, 0)
    ([25, 50, 75, 100], [1, 2, 3], [])
    """
    return sorted({-(-steps * (i + 1) // count) for i in range(count)})


def write_snapshot(run: Path, step: int, adapters: AdapterSet, *, saved: bool = False) -> Path:
    """Write the weights of a step into a run's folder; ``saved`` marks one that a person asked for."""
    path = run / FOLDER / f"{step:06d}{_SAVED if saved else ''}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_adapter(path, adapters, {})
    return path


def find_snapshots(run: Path) -> dict[int, Path]:
    """The snapshots of a run by step, in order."""
    files = {path: path.stem.removesuffix(_SAVED) for path in sorted((run / FOLDER).glob("*.safetensors"))}
    return {int(name): path for path, name in files.items() if name.isdecimal()}


def drop_snapshots(run: Path, keep: Collection[int]) -> None:
    """Delete the snapshots of other steps than ``keep``, but for those that a person saved."""
    for step, path in find_snapshots(run).items():
        if step not in keep and not path.stem.endswith(_SAVED):
            path.unlink()
