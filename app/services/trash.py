"""The trash: what was deleted, to be looked at and put back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from atelier.app.store.gallery import restore_picture
from atelier.app.store.home import Home, HomeError, explain_write_errors, time_of_id
from atelier.app.store.library import restore_adapter
from atelier.app.store.trash import original_name, trash_folder


@dataclass(frozen=True, slots=True)
class TrashedFile:
    """Something that was deleted and can be put back."""

    path: Path          # in the trash
    kind: str           # adapters, gallery, textual_inversions or mixes
    name: str           # the file's name before it was deleted, without its suffix
    deleted: datetime
    bytes: int

    @property
    def id(self) -> str:
        """By which :func:`restore` finds it."""
        return f"{self.kind}/{self.path.name}"


def list_trash(home: Home) -> list[TrashedFile]:
    """What can be put back, deleted last first."""
    found = []
    for folder in _folders(home):
        trash = trash_folder(home, folder)
        for path in trash.iterdir() if trash.is_dir() else ():
            deleted = time_of_id(path.name)
            if deleted and path.is_file():
                name = Path(original_name(path)).stem
                found.append(TrashedFile(path, folder.name, name, deleted, path.stat().st_size))
    return sorted(found, key=lambda file: file.path.name, reverse=True)


def restore(home: Home, id: str) -> Path:
    """Put a file back where it was, by its id or the name that it had; of several of a name, the one deleted last.

    Raises:
        HomeError: it is not in the trash, or something else has its name by now.
    """
    file = next((file for file in list_trash(home) if id in (file.id, file.name)), None)
    if file is None:
        names = ", ".join(dict.fromkeys(file.name for file in list_trash(home)[:10])) or "nothing"
        raise HomeError(f"{id!r} is not in the trash. There is: {names}.")
    if file.kind == home.adapters.name:
        return restore_adapter(home, file.path)
    if file.kind == home.gallery.name:
        return restore_picture(home, file.path)
    before = home.path / file.kind / original_name(file.path)
    if before.exists():
        raise HomeError(f"{before.name} can't be put back, because there is another file of this name. Rename that "
                        "one first.")
    with explain_write_errors(before.parent):
        return file.path.rename(before)


def _folders(home: Home) -> tuple[Path, ...]:
    return home.adapters, home.gallery, home.textual_inversions, home.mixes
