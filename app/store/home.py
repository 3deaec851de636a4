"""The home: one folder that holds everything a person makes with Atelier.

::

    datasets/<slug>/             pictures to train on
    runs/<id>/                   one folder for each training run (training/config/run_folder.py)
    adapters/<name>.safetensors  finished adapters, recipe in the header
    bases/<name>/                compressed base models
    gallery/<id>.png             drawn pictures, recipe in a text chunk
    gallery/.starts/             pictures that drawings started from, by the hash of their pixels
    textual_inversions/<name>.safetensors  words with vectors of their own
    wildcards/<name>.txt         lines that a prompt chooses from with __name__
    mixes/<name>.json            adapters that are drawn with together, and how
    trash/                       what was deleted, to be restored
    grids/<id>.json              drawings repeated with other settings, and votes on them
    picture_marks.json           stars and boards of the gallery
    preferences.json             what was chosen for everything
    models.txt                   folders with base models
    base_settings.json           what was set for single base models
    caption_model/               a model that proposes captions, where a person put one
    state/                       the queue, indexes and locks: no work is lost without them
"""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.disk_space import is_disk_full
from atelier.adapters.core.parse import parse_path

MAX_NAME = 64           # characters
_MAX_NAME_BYTES = 200   # so that a suffix and the mark of a partial file still fit into the 255 of file systems
_ID_TIME = "%Y%m%d-%H%M%S-%f"
# Windows refuses these with any suffix; a home may be copied or shared.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


class HomeError(ValueError):
    """Something in the home that can't be used or written; the message says what and the likely cure."""


@dataclass(frozen=True, slots=True)
class Home:
    """Paths inside one home, and where its jobs wait."""

    path: Path
    queue: str = ""   # URL of a Redis server for several machines; empty: a file in the home, for this one

    @property
    def folders(self) -> tuple[Path, ...]:
        """The home and every folder in it that is made at the start."""
        return (self.path, self.datasets, self.runs, self.adapters, self.bases, self.gallery, self.mixes, self.grids,
                self.textual_inversions, self.wildcards, self.trash, self.state)   # fmt: skip

    @property
    def datasets(self) -> Path:
        """Pictures to train on, one folder for each dataset."""
        return self.path / "datasets"

    @property
    def runs(self) -> Path:
        """One folder for each training or compression run, with its settings, events and checkpoints."""
        return self.path / "runs"

    @property
    def adapters(self) -> Path:
        """The library: one safetensors file for each trained or imported adapter."""
        return self.path / "adapters"

    @property
    def bases(self) -> Path:
        """One folder for each base model that was compressed here."""
        return self.path / "bases"

    @property
    def gallery(self) -> Path:
        """PNG files of drawn pictures, each with its settings inside."""
        return self.path / "gallery"

    @property
    def textual_inversions(self) -> Path:
        """Words with vectors of their own, for prompts."""
        return self.path / "textual_inversions"

    @property
    def wildcards(self) -> Path:
        """Text files whose lines prompts choose from."""
        return self.path / "wildcards"

    @property
    def mixes(self) -> Path:
        """One JSON file for each saved Mix."""
        return self.path / "mixes"

    @property
    def grids(self) -> Path:
        """One JSON file for each grid of drawings."""
        return self.path / "grids"

    @property
    def thumbnails(self) -> Path:
        """Small pictures of adapters, made from their files when a list first shows them."""
        return self.state / "thumbnails"

    @property
    def trash(self) -> Path:
        """What was deleted, one folder for each folder that it came from."""
        return self.path / "trash"

    @property
    def picture_marks(self) -> Path:
        """File with the stars and boards of the gallery."""
        return self.path / "picture_marks.json"

    @property
    def preferences(self) -> Path:
        """File with what was chosen for everything."""
        return self.path / "preferences.json"

    @property
    def models(self) -> Path:
        """File with the paths of folders with base models, one a line."""
        return self.path / "models.txt"

    @property
    def base_settings(self) -> Path:
        """File with what was set for single base models."""
        return self.path / "base_settings.json"

    @property
    def caption_model(self) -> Path:
        """Folder of a model that proposes captions; made by the person who has one."""
        return self.path / "caption_model"

    @property
    def state(self) -> Path:
        """The queue, indexes and locks."""
        return self.path / "state"


def open_home(path: Path | None = None, queue: str = "") -> Home:
    """Open a home and make what is missing in it.

    Args:
        path: its folder; None: ``$ATELIER_HOME``, else a folder for Atelier among the person's application data.
        queue: URL of the Redis server in which its jobs wait, where several machines share it.

    Raises:
        HomeError: it is not a folder, or can't be written.
    """
    home = Home(_default_path() if path is None else Path(path).expanduser().absolute(), queue)
    for folder in home.folders:
        with explain_write_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable")
    return home


def home_problem(home: Home) -> str:
    """A sentence where a home that was opened is gone; single folders that were deleted are made again."""
    if not home.state.is_dir():   # perhaps a disk that was detached: nothing may be made in its place
        return (f"The folder {home.path} is gone. If it is on another disk, attach the disk again. Otherwise restart "
                "Atelier.")
    try:
        for folder in home.folders:
            if not folder.is_dir():
                with explain_write_errors(folder):
                    folder.mkdir(mode=0o700, exist_ok=True)
    except HomeError as error:
        return str(error)
    return ""


def _default_path() -> Path:
    from platformdirs import user_data_path

    chosen = os.environ.get("ATELIER_HOME", "")
    return Path(chosen).expanduser().absolute() if chosen else user_data_path("atelier")


@contextmanager
def explain_write_errors(place: Path) -> Iterator[None]:
    """Turn an error of the operating system while writing to ``place`` into a sentence with a cure.

    Raises:
        HomeError: the disk is full, permission is missing, or a file is where a folder should be.
    """
    try:
        yield
    except OSError as error:
        raise HomeError(os_error_text(error, place)) from error


def os_error_text(error: OSError, place: Path | None = None) -> str:
    """A sentence with a cure for an error of the operating system at ``place``, or where the error says."""
    where = place or error.filename or "a file"
    if is_disk_full(error):
        return f"The disk with {where} is full. Free some space and try again. Your existing files are unchanged."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (f"{where} can't be written to. Change its permissions, or choose another home with --home or "
                "ATELIER_HOME.")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return (f"{where} should be a folder, but it is a file or inside a file. Choose another home with --home or "
                "ATELIER_HOME.")
    if isinstance(error, FileNotFoundError) and place is None:
        return f"{where} is gone. If it is on another disk, attach the disk again."
    return f"{where} can't be used: {error.strerror or error}."


def write_home_file(path: Path, content: bytes) -> None:
    """Write a file of the home; no reader sees half of it, and a full disk leaves none.

    Raises:
        HomeError: see :func:`explain_write_errors`.
    """
    with explain_write_errors(path.parent):
        atomic_write(path, content)


def time_id() -> str:
    """Make a new id that sorts by time, in UTC to the microsecond: ``20251122-075612-123456``."""
    return datetime.now(UTC).strftime(_ID_TIME)


def time_of_id(text: str) -> datetime | None:
    """Read the time that an id starts with; None when it is no such id."""
    try:
        return datetime.strptime(text[:22], _ID_TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def safe_name(text: str) -> str:
    """Check a name that becomes a file name and an argument on a command line; spaces around it are removed.

    Raises:
        HomeError: empty, longer than 64 characters, reserved by an operating system, or with other characters than
            letters, digits, spaces, ``-`` and ``_``.
    """
    name = unicodedata.normalize("NFC", text).strip(" ")
    if not name:
        raise HomeError("The name is empty. Enter one, such as 'fox'.")
    if len(name) > MAX_NAME or len(name.encode(errors="replace")) > _MAX_NAME_BYTES:
        raise HomeError(f"The name {name[:20]!r}… has {len(name)} characters. Use at most {MAX_NAME}.")
    if not all(_is_plain(character) for character in name) or unicodedata.category(name[0])[0] not in "LN":
        raise HomeError(f"The name {name!r} can't be used. Start with a letter or digit, and use only letters, digits, "
                        "spaces, - and _.")
    if name.casefold() in _RESERVED:
        raise HomeError(f"The name {name!r} is reserved by Windows. Choose another, such as '{name}-1'.")
    return name


def _is_plain(character: str) -> bool:
    return character in " -_" or unicodedata.category(character)[0] in "LMN"


def new_name(home: Home, text: str, busy: frozenset[str] = frozenset()) -> str:
    """Check a name for a new adapter: safe, and neither taken by an adapter nor in ``busy``.

    Raises:
        HomeError: see :func:`safe_name`; a taken name's message proposes a free one.
    """
    return _free_name(text, adapter_names(home) | busy)


def adapter_names(home: Home) -> set[str]:
    """The names that adapters have, whatever the case of their files' suffix."""
    return {path.stem for path in home.adapters.iterdir() if path.suffix.lower() == ".safetensors"}


def new_base_name(home: Home, text: str, busy: frozenset[str] = frozenset()) -> str:
    """Check a name for a new base model of the home: safe, and neither taken by one nor in ``busy``.

    Raises:
        HomeError: see :func:`safe_name`; a taken name's message proposes a free one.
    """
    return _free_name(text, {path.name for path in home.bases.iterdir()} | busy)


def _free_name(text: str, others: Set[str]) -> str:
    name = safe_name(text)
    # Upper and lower case count as the same, as on some file systems.
    taken = {other.casefold() for other in others}
    if name.casefold() not in taken:
        return name
    stem = re.sub(r"-\d+$", "", name)[: MAX_NAME - 5]
    free = next(f"{stem}-{n}" for n in range(2, len(taken) + 3) if f"{stem}-{n}".casefold() not in taken)
    raise HomeError(f"The name {name!r} is already used. Choose another, such as {free!r}.")


def absolute_base(text: str) -> str:
    """Make the path of a base model absolute, so that it does not depend on the working folder; keep other names."""
    path = parse_path(text)
    return str(path.absolute()) if text not in ("", "embedded") and path.exists() else text
