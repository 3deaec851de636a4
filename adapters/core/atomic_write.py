"""Whole files and folders on disk: readers see the old one or the new one, also after a crash or a power cut.

Everything is written to a temporary name beside the final one, flushed to the disk, then renamed.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file, or replace it.

    Raises:
        OSError: it can't be written; the old file, if there was one, is unchanged.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder to fill; it becomes ``path`` when the context ends without an error.

    One process at a time may write the same folder. Without ``replace`` only an empty folder may be there already.

    Raises:
        OSError: it can't be written; what was at ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)   # left by a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _flush_tree(temporary)
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush_folder(path.parent)


def _temporary(path: Path) -> Path:
    """A name of its own for every writer: two may write the same file at once."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    """Flush the entries of a folder, so that a rename in it survives a power cut; Windows does that by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
