"""Several pictures of the gallery in one ZIP file. A file of its own, because pages and the API make it on request."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from atelier.app.store.gallery import find_picture
from atelier.app.store.home import Home, HomeError, explain_write_errors, time_id
from atelier.app.text.gallery import CHOOSE_SOME, too_many

MAX_PICTURES = 1000


def zip_pictures(home: Home, ids: Sequence[str], folder: Path) -> Path:
    """Write pictures byte for byte into a new ZIP file in ``folder``; returns it.

    Raises:
        HomeError: there are none or too many, one is gone, or the file can't be written.
    """
    if not ids:
        raise HomeError(CHOOSE_SOME)
    if len(ids) > MAX_PICTURES:
        raise HomeError(too_many(MAX_PICTURES))
    files = [find_picture(home, id).path for id in dict.fromkeys(ids)]
    target = folder / f"atelier-{time_id()}.zip"
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # PNG files are compressed already.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
            for file in files:
                packed.write(file, file.name)
    return target
