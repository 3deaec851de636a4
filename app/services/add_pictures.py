"""Pictures that were drawn elsewhere come into the gallery: Atelier's own as they are, others with what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.app.services.draw import check_job
from atelier.app.services.like_picture import job_like
from atelier.app.store.gallery import is_picture_id, keep_picture_file, read_recipe, save_picture
from atelier.app.store.home import Home, HomeError
from atelier.app.store.picture_metadata import MAX_FILE
from atelier.app.text import gallery as words
from atelier.training.data.images import open_picture


@dataclass(frozen=True, slots=True)
class AddedPicture:
    """What became of one file: the picture's id in the gallery, or the reason why it was refused."""

    path: Path
    id: str = ""
    notes: tuple[str, ...] = ()   # what a person should know, in sentences
    reason: str = ""


def add_pictures(home: Home, paths: Sequence[Path]) -> Iterator[AddedPicture]:
    """Add pictures that say how they were drawn, one by one; yields what became of each."""
    for path in paths:
        try:
            yield _add(home, path)
        except ValueError as error:   # Atelier's own errors, written for people
            yield AddedPicture(path, reason=str(error))


def _add(home: Home, path: Path) -> AddedPicture:
    if path.stat().st_size > MAX_FILE:
        raise HomeError(words.too_large(path.name, MAX_FILE))
    picture = open_picture(path)   # first: what follows reads headers alone
    if read_recipe(path):
        here = home.gallery / f"{path.stem}.png"
        if is_picture_id(path.stem) and here.exists() and here.read_bytes() == path.read_bytes():
            return AddedPicture(path, path.stem, (words.IS_HERE,))
        return AddedPicture(path, keep_picture_file(home, path).stem)
    job, notes = job_like(home, path)
    return AddedPicture(path, save_picture(home, picture, check_job(home, job).recipe(0)).stem, tuple(notes))
