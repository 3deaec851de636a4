"""What takes up disk space in a home, and what of it can go without losing anything that a person made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atelier.app.jobs.jobs import list_runs
from atelier.app.store.home import Home, HomeError, explain_write_errors


@dataclass(frozen=True, slots=True)
class StorageEntry:
    """One kind of files."""

    kind: str
    bytes: int
    removable: int   # bytes of these that a clean-up frees


def list_storage(home: Home) -> list[StorageEntry]:
    """How large each kind of files is, and how much of it :func:`clean_up` frees."""
    found = []
    for kind, folders in _KINDS.items():
        size = sum(map(_bytes, folders(home)))
        removable = sum(map(_bytes, _REMOVABLE[kind](home))) if kind in _REMOVABLE else 0
        found.append(StorageEntry(kind, size, removable))
    return found


def clean_up(home: Home, kind: str) -> int:
    """Delete what can go of one kind, for good; returns how many bytes that were.

    Raises:
        HomeError: nothing of this kind can go, or the disk refuses.
    """
    if kind not in _REMOVABLE:
        raise HomeError(f"Nothing can be cleaned up under {kind!r}. Choose one of: {', '.join(_REMOVABLE)}.")
    freed = 0
    for folder in _REMOVABLE[kind](home):
        with explain_write_errors(folder):
            for path in folder.iterdir() if folder.is_dir() else ():
                size = _bytes(path)
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                freed += size
    return freed


def _finished_checkpoints(home: Home) -> list[Path]:
    """Saved steps of jobs that ended well. The others may be resumed from theirs."""
    return [home.runs / run.id / "checkpoints" for run in list_runs(home) if run.state in ("done", "stopped")]


def _small_pictures(home: Home) -> list[Path]:
    return [home.gallery / ".thumbs", home.thumbnails, home.state / "strips"]


_REMOVABLE: dict[str, Callable[[Home], list[Path]]] = {
    "trash": lambda home: [home.trash], "runs": _finished_checkpoints, "thumbnails": _small_pictures,
    "exports": lambda home: [home.state / "exports"],
}   # fmt: skip
_KINDS: dict[str, Callable[[Home], list[Path]]] = {
    "adapters": lambda home: [home.adapters, home.textual_inversions], "gallery": lambda home: [home.gallery],
    "datasets": lambda home: [home.datasets], "runs": lambda home: [home.runs], "bases": lambda home: [home.bases],
    "trash": lambda home: [home.trash], "thumbnails": _small_pictures, "exports": lambda home: [home.state / "exports"],
}   # fmt: skip


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder. Links count as nothing; what goes meanwhile, too."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size if path.exists() and not path.is_symlink() else 0
    total, left = 0, [str(path)]
    while left:
        try:   # entries of scandir know their type: a gallery of 100,000 pictures is read once
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total
