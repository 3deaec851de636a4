"""What is wrong in a home and how it is repaired. Nothing is deleted that a person made: it goes to the trash."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from PIL import Image

from atelier.adapters.core.parse import parse_json
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import read_metadata
from atelier.adapters.formats.safetensors_header import FileError
from atelier.app.jobs.jobs import read_status, run_folders
from atelier.app.jobs.queue_file import is_sound, queue_path, set_aside_damaged
from atelier.app.store.adapter_embeddings import INDEX_FILE
from atelier.app.store.gallery import gallery_page
from atelier.app.store.home import Home, HomeError, explain_write_errors, time_id
from atelier.app.store.library import INDEX, list_unreadable
from atelier.app.store.mixes import SUFFIX, list_mixes, read_mix
from atelier.app.store.models import scan_models
from atelier.app.store.textual_inversions import list_unreadable_inversions
from atelier.app.store.trash import move_to_trash
from atelier.training.config.events import from_line
from atelier.training.config.run_folder import RunFolder
from atelier.training.data.images import PictureError, open_picture
from atelier.training.data.picture_folder import PICTURE_SUFFIXES
from atelier.training.loop.checkpoint import CheckpointError, list_checkpoints, read

LEFTOVER_SECONDS = 3600.0   # what is younger may be in use
_TEMPORARY = re.compile(r"\..+\.(\d+)-\d+")   # of a file that the process with this number was writing
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and what can be done about it here."""

    problem: str                                # a sentence
    repair: Callable[[], str] | None = None     # does it, and says in a sentence what was done


def check_home(home: Home) -> Iterator[Finding]:
    """Read everything in a home and give what is wrong."""
    # Indexes first: some are made anew when the others are read.
    for check in (_indexes, _runs, _checkpoints, _adapters, _pictures, _datasets, _mixes, _settings, _bases,
                  _leftovers):   # fmt: skip
        yield from check(home)


def _runs(home: Home) -> Iterator[Finding]:
    for run in map(RunFolder, run_folders(home)):
        state = read_status(run)
        if state.state == "failed" and not _is_readable(run):
            yield Finding(f"{state.message} Restore its recipe.toml from a backup, or delete the folder.")
        with suppress(OSError):
            lines = (run.path / "events.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
            if damaged := sum(bool(line) and from_line(line) is None for line in lines[:-1]):
                yield Finding(f"{damaged} of {len(lines) - 1} events of the run {run.id} can't be read. They are left "
                              "out where the run is shown.")


def _is_readable(run: RunFolder) -> bool:
    try:
        return bool(run.compression() or run.config())
    except (ValueError, OSError):
        return False


def _checkpoints(home: Home) -> Iterator[Finding]:
    for run in map(RunFolder, run_folders(home)):
        for path in [] if run.is_alive() else list_checkpoints(run.path / "checkpoints"):
            try:
                read(path)
            except CheckpointError as error:
                problem = f"The checkpoint {path.name} of the run {run.id} can't be used: {error}."
                yield Finding(problem, partial(_trash_checkpoint, home, run, path))


def _trash_checkpoint(home: Home, run: RunFolder, path: Path) -> str:
    folder = home.trash / "checkpoints"
    with explain_write_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        path.rename(folder / f"{time_id()}-{run.id}-{path.name}")
    rest = list_checkpoints(run.path / "checkpoints")
    then = f"continues from {rest[-1].name}" if rest else "starts again when it is resumed"
    return f"Moved the checkpoint {path.name} to the trash. The run {run.id} {then}."


def _adapters(home: Home) -> Iterator[Finding]:
    for file in list_unreadable(home):
        if _is_foreign(file.path):
            yield Finding(f"{file.reason} Import it: atelier import {file.path}.")
        else:
            yield Finding(file.reason, partial(_trash, home, file.path))
    yield from map(Finding, list_unreadable_inversions(home))


def _is_foreign(path: Path) -> bool:
    """Whether a file is a whole one, of another tool."""
    try:
        return not AdapterInfo.from_metadata(read_metadata(path)).kind
    except FileError:
        return False


def _pictures(home: Home) -> Iterator[Finding]:
    for picture in gallery_page(home, limit=10**9, with_damaged=True):
        if picture.damaged or not _can_be_decoded(picture.path):
            yield Finding(f"The picture {picture.path.name} is damaged.", partial(_trash, home, picture.path))
    for small in (home.gallery / ".thumbs").glob("*.webp"):
        if not (home.gallery / f"{small.stem}.png").exists():
            yield Finding(f"The thumbnail {small.name} belongs to no picture.", partial(_delete, small))


def _can_be_decoded(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
    except _PICTURE_ERRORS:
        return False
    return True


def _datasets(home: Home) -> Iterator[Finding]:
    for path in sorted(home.datasets.glob("*/*")):
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
            try:
                open_picture(path)
            except PictureError as error:
                yield Finding(f"In the dataset {path.parent.name}: {error} Training leaves it out.")


def _mixes(home: Home) -> Iterator[Finding]:
    for name in list_mixes(home):
        path = home.mixes / f"{name}{SUFFIX}"
        try:
            read_mix(home, name)
        except HomeError as error:
            yield Finding(str(error), partial(_trash, home, path))


def _settings(home: Home) -> Iterator[Finding]:
    for path in (home.preferences, home.datasets / ".draft" / "draft.json"):
        if path.exists() and not _is_json(path, dict):
            problem = f"{path.name} can't be read, so its settings are the usual ones."
            yield Finding(problem, partial(_trash, home, path))


def _bases(home: Home) -> Iterator[Finding]:
    for model in scan_models(home.bases):
        if model.reason:
            yield Finding(f"The base model {model.path.name} can't be used: {model.reason}")


def _indexes(home: Home) -> Iterator[Finding]:
    if queue_path(home).exists() and not is_sound(queue_path(home)):
        yield Finding(f"The queue {queue_path(home)} is damaged.", partial(_remake_queue, home))
    if (index := home.state / INDEX).exists() and not is_sound(index):
        yield Finding(f"The index {INDEX} is damaged. It is made again when it is needed.", partial(_delete, index))
    for name in ("worker.json", "server.json"):
        path = home.state / name
        if path.exists() and not _is_json(path, dict | list):
            yield Finding(f"The index {path.name} is damaged. It is made again when it is needed.",
                          partial(_delete, path))   # fmt: skip
    with suppress(FileNotFoundError):
        try:
            if (home.state / INDEX_FILE).exists():
                read_metadata(home.state / INDEX_FILE)
        except FileError:
            yield Finding(f"The index {INDEX_FILE} is damaged. It is made again when it is needed.",
                          partial(_delete, home.state / INDEX_FILE))   # fmt: skip


def _remake_queue(home: Home) -> str:
    set_aside_damaged(queue_path(home))
    return "Set the damaged queue aside. The worker finds the waiting runs again."


def _leftovers(home: Home) -> Iterator[Finding]:
    """What killed processes were writing."""
    for path in sorted(home.path.rglob(".*")):
        if path.exists() and _is_leftover(home, path):
            yield Finding(f"{path} was left behind by a process that was killed.", partial(_delete, path))
    for run in map(RunFolder, run_folders(home)):
        path = run.path / "heartbeat"
        if path.exists() and _age(path) > LEFTOVER_SECONDS:
            yield Finding(f"{path} was left behind by a process that was killed.", partial(_delete, path))


def _is_leftover(home: Home, path: Path) -> bool:
    if match := _TEMPORARY.fullmatch(path.name):
        return not psutil.pid_exists(int(match[1][:9])) or _age(path) > LEFTOVER_SECONDS
    partial_folder = path.name.endswith(".partial") or path.name.startswith(".step-") or path.parent == home.runs
    return path.is_dir() and partial_folder and _age(path) > LEFTOVER_SECONDS


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _is_json(path: Path, kind: object) -> bool:
    try:
        return isinstance(parse_json(path.read_bytes()), kind)   # type: ignore[arg-type]
    except (OSError, ValueError):
        return False


def _trash(home: Home, path: Path) -> str:
    return f"Moved {path.name} to the trash: {move_to_trash(home, path)}."


def _delete(path: Path) -> str:
    with explain_write_errors(path.parent):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return f"Deleted {path}."
