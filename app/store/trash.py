"""The trash of a home: deleted files, under names that begin with the time, until they are restored.

Apart from ``library.py`` (adapters) and ``gallery.py`` (pictures), because both delete and restore with it.
"""

from __future__ import annotations

from pathlib import Path

from atelier.app.store.home import Home, explain_write_errors, time_id


def move_to_trash(home: Home, path: Path) -> Path:
    """Move a file to the trash under a name that starts with the time; returns its path there."""
    folder = trash_folder(home, path.parent)
    with explain_write_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        return path.rename(folder / f"{time_id()}-{path.name}")


def trash_folder(home: Home, folder: Path) -> Path:
    """The folder of the trash for what was deleted from ``folder``."""
    return home.trash / folder.name


def original_name(path: Path) -> str:
    """The name that a file in the trash had before it was deleted."""
    return path.name[len(time_id()) + 1 :]
