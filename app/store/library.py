"""The library: the adapters of a home, read from the headers of their files alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import data_hash, read_native_metadata
from atelier.adapters.formats.safetensors_header import FileError
from atelier.app.store.adapter_health import FileState, problems
from atelier.app.store.home import Home, HomeError, adapter_names, explain_write_errors, new_name, safe_name, time_of_id
from atelier.app.store.previews import is_showable
from atelier.app.store.trash import move_to_trash, original_name, trash_folder

SUFFIX = ".safetensors"
_MOST_NOTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCard:
    """What is shown of an adapter, as its file says it."""

    name: str
    path: Path
    kind: str
    trigger: str       # the word that stands for it in prompts
    subject: str       # class word: what it is
    base: str          # the base model it was trained on, as it was given
    title: str         # of the base model, for people
    family: str        # the base model's family
    bytes: int
    created: datetime  # UTC
    thumbnail: str     # data URI, or ""
    pictures: int      # how many it was trained on
    algorithms: str = ""   # of a file from another tool: LoRA, LoKr …
    source: str = ""       # hash of the contents of the file it was imported from
    file_hash: str = ""    # of that file's tensor bytes (SHA-256), by which other tools know it
    sampler: str = ""      # that it was made for: lcm, or "" for any
    notes: tuple[str, ...] = ()   # what was unusual about the file it was imported from, in sentences


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A file among the adapters that can't be read as one, and why."""

    path: Path
    reason: str


def list_adapters(home: Home) -> list[AdapterCard]:
    """All adapters that can be read, newest first."""
    cards = [card for card in _read_all(home) if isinstance(card, AdapterCard)]
    return sorted(cards, key=lambda card: (card.created, card.name), reverse=True)


def list_unreadable(home: Home) -> list[UnreadableFile]:
    """The files among the adapters that can't be read, by name."""
    return [file for file in _read_all(home) if isinstance(file, UnreadableFile)]


def find_adapter(home: Home, name: str) -> AdapterCard:
    """Find an adapter by its name.

    Raises:
        HomeError: there is none, or its file can't be read; the message suggests the adapter with the closest name.
    """
    found = _read(home, adapter_path(home, name))
    if isinstance(found, AdapterCard):
        return found
    if found:
        raise HomeError(f"{name!r} can't be opened: {found.reason}")
    names = [card.name for card in list_adapters(home)]
    near = get_close_matches(name, names, 1)
    cure = f"Did you mean {near[0]!r}?" if near else f"Your adapters: {', '.join(names[:10]) or 'none yet'}."
    raise HomeError(f"There is no adapter named {name!r}. {cure}")


def adapter_path(home: Home, name: str) -> Path:
    """The file of an adapter; where there is none, the one that a new adapter of this name would get.

    A file that was put into the folder by hand can have any name, and its suffix can be in capital letters.

    Raises:
        HomeError: there is none, and the name can't be used for a new one.
    """
    usual = home.adapters / f"{name}{SUFFIX}"
    if usual.parent == home.adapters and usual.is_file():
        return usual
    others = (path for path in home.adapters.iterdir() if path.stem == name and path.suffix.lower() == SUFFIX)
    return next(others, None) or home.adapters / f"{safe_name(name)}{SUFFIX}"


def delete_adapter(home: Home, name: str) -> Path:
    """Move an adapter to the trash; returns its path there.

    Raises:
        HomeError: there is no such file, or it can't be moved.
    """
    path = adapter_path(home, name)
    if not path.is_file():
        return find_adapter(home, name).path   # raises the error that names the closest one
    return move_to_trash(home, path)


def restore_adapter(home: Home, trashed: Path) -> Path:
    """Put an adapter from the trash back where it was, unchanged.

    Raises:
        HomeError: it is not in the trash, or its name has been taken since.
    """
    path = trash_folder(home, home.adapters) / trashed.name
    if time_of_id(path.name) is None or not path.is_file() or path.suffix.lower() != SUFFIX:
        raise HomeError(f"{trashed.name} is no longer in the trash.")
    before = home.adapters / original_name(path)
    if before.stem.casefold() in {name.casefold() for name in adapter_names(home)}:
        new_name(home, before.stem)   # raises the error that proposes a free name
    with explain_write_errors(home.adapters):
        return path.rename(before)


def adapter_hash(card: AdapterCard) -> str:
    """SHA-256 of the adapter's tensors: it stays the same under another name and with other metadata."""
    return _hash(card.path, card.path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash(path: Path, _modified: int) -> str:
    return data_hash(path)


def _read_all(home: Home) -> list[AdapterCard | UnreadableFile]:
    # Strings from scandir: with thousands of files, Path objects and their stat would take most of the time.
    with os.scandir(home.adapters) as entries:
        files = sorted((entry.name, entry) for entry in entries
                       if entry.name.lower().endswith(SUFFIX) and not entry.name.startswith("."))   # fmt: skip
    found: list[tuple[AdapterCard | UnreadableFile, int]] = []
    for _, entry in files:
        with suppress(FileNotFoundError):
            facts = entry.stat()
            found.append((_card(entry.path, facts.st_mtime_ns, facts.st_size), facts.st_mtime_ns))
    return _without_damaged(home, found)


def _read(home: Home, path: Path) -> AdapterCard | UnreadableFile | None:
    """Read the card of one file; None when it is not there."""
    try:
        facts = path.stat()
    except OSError:
        return None
    [found] = _without_damaged(home, [(_card(str(path), facts.st_mtime_ns, facts.st_size), facts.st_mtime_ns)])
    return found


def _without_damaged(
    home: Home, found: Sequence[tuple[AdapterCard | UnreadableFile, int]]
) -> list[AdapterCard | UnreadableFile]:
    """Cards (with their files' modification times), where files with NaN, infinite or absurd values are unreadable."""
    states = [FileState(card.path, modified, card.bytes) for card, modified in found if isinstance(card, AdapterCard)]
    damaged = problems(home, states)
    return [UnreadableFile(card.path, damaged[card.path.name]) if card.path.name in damaged else card
            for card, _ in found]   # fmt: skip


@lru_cache(maxsize=20_000)
def _card(name: str, modified: int, size: int) -> AdapterCard | UnreadableFile:
    # The time and size are arguments so that a changed file is read again.
    path = Path(name)
    try:
        text = read_native_metadata(path)
    except FileError as error:
        return UnreadableFile(path, str(error))
    info = AdapterInfo.from_metadata(text)
    return AdapterCard(
        name=path.stem,
        path=path,
        kind=info.kind,
        trigger=info.trigger or ("" if info.algorithms else path.stem),
        subject=info.subject,
        base=info.base,
        title=info.title or info.base,
        family=info.family,
        bytes=size,
        created=_parse_time(info.created, modified),
        thumbnail=info.thumbnail if is_showable(info.thumbnail) else "",
        pictures=info.pictures or 0,
        algorithms=", ".join(info.algorithms),
        source=info.source,
        file_hash=info.file_hash,
        sampler=info.sampler,
        notes=info.notes[:_MOST_NOTES],
    )


def _parse_time(text: str, modified: int) -> datetime:
    """Read a time in ISO 8601; the file's own time (nanoseconds since 1970) where there is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(modified / 1e9, UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
