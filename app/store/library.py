"""The library: the adapters of a home, read from the headers of their files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from atelier.adapters.core.parse import parse_json, parse_path
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import adapter_problem, data_hash, read_header, read_native_metadata
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.fusion.blocks import blocks_of
from atelier.app.store.folder_index import FileReader, FileState, FolderIndex
from atelier.app.store.home import Home, HomeError, adapter_names, explain_write_errors, new_name, safe_name, time_of_id
from atelier.app.store.previews import is_showable, thumbnail_of_preview
from atelier.app.store.trash import move_to_trash, original_name, trash_folder

SUFFIX = ".safetensors"
INDEX = "adapters.sqlite"
_VERSION = 2
_MOST_NOTES = 20
_READ_AT_ONCE = 250   # files, in a quarter of a second


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
    thumbnail: str     # name of its picture in lists: a hash, or "" where the file has none
    pictures: int      # how many it was trained on
    algorithms: str = ""   # of a file from another tool: LoRA, LoKr …
    source: str = ""       # hash of the contents of the file it was imported from
    file_hash: str = ""    # of that file's tensor bytes (SHA-256), by which other tools know it
    hash: str = ""         # SHA-256 of the adapter's tensors; empty in a card that was not read from a file
    parent: str = ""       # that of the adapter whose training it continued
    sampler: str = ""      # that it was made for: lcm, or "" for any
    notes: tuple[str, ...] = ()   # what was unusual about the file it was imported from, in sentences


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A file among the adapters that can't be read as one, and why."""

    path: Path
    reason: str


class _Lists(NamedTuple):
    cards: list[AdapterCard]             # newest first
    unreadable: list[UnreadableFile]     # by name
    pictures: dict[str, AdapterCard]     # by the names of their pictures


def list_adapters(home: Home) -> list[AdapterCard]:
    """All adapters that can be read, newest first."""
    return list(_lists(home).cards)


def read_library(home: Home) -> Iterator[tuple[int, int]]:
    """Read the files that were never read, a few at a time; yields how many are read, and of how many, before the rest.

    Nothing is yielded where a list can be shown at once.

    Raises:
        OSError: the folder can't be read.
    """
    index = _index(home.adapters, home.state / INDEX)
    read, count = index.read_some(0)
    while count - read > _READ_AT_ONCE:
        yield read, count
        read, count = index.read_some(_READ_AT_ONCE)


def list_unreadable(home: Home) -> list[UnreadableFile]:
    """The files among the adapters that can't be read, by name."""
    return list(_lists(home).unreadable)


def read_thumbnail(card: AdapterCard) -> str:
    """The picture in an adapter's file, as a ``data:`` address that pages may show; empty where there is none."""
    if not card.thumbnail:
        return ""
    try:
        address = AdapterInfo.from_metadata(read_native_metadata(card.path)).thumbnail
    except FileError:   # deleted or damaged since it was listed
        return ""
    return address if is_showable(address) else ""


def make_thumbnail(home: Home, name: str, side: int) -> Path | None:
    """Write the small picture that a list shows of an adapter; None where no adapter has a picture of this name.

    Raises:
        HomeError: it can't be written.
    """
    card = _lists(home).pictures.get(name)
    return thumbnail_of_preview(home, read_thumbnail(card), name, side) if card else None


def find_adapter(home: Home, name: str) -> AdapterCard:
    """Find an adapter by its name.

    Raises:
        HomeError: there is none, or its file can't be read; the message suggests the adapter with the closest name.
    """
    found = _index(home.adapters, home.state / INDEX).value(adapter_path(home, name).name)
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
    usual = parse_path(str(home.adapters / f"{name}{SUFFIX}"))
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
    return card.hash or data_hash(card.path)


def find_adapter_by_hash(home: Home, hash: str) -> AdapterCard | None:
    """The newest adapter with these tensors; None where there is none."""
    return next((card for card in _lists(home).cards if hash and card.hash == hash), None)


def continued_from(home: Home, card: AdapterCard) -> list[AdapterCard]:
    """The adapters whose training continued an adapter's, newest first."""
    return [other for other in _lists(home).cards if card.hash and other.parent == card.hash]


def adapter_blocks(card: AdapterCard) -> list[str]:
    """The blocks of the UNet (``adapters/fusion/blocks.py``) that an adapter changes, in their order."""
    return list(_blocks(card.path, card.path.stat().st_mtime_ns))


@lru_cache(maxsize=256)
def _blocks(path: Path, _modified: int) -> tuple[str, ...]:
    return tuple(blocks_of(spec.name for spec in read_header(path).specs))


def _lists(home: Home) -> _Lists:
    index = _index(home.adapters, home.state / INDEX)
    return _make_lists(index, index.update())


@lru_cache(maxsize=8)
def _make_lists(index: FolderIndex[AdapterCard | UnreadableFile], _changes: int) -> _Lists:
    values = index.values()
    cards = sorted((value for value in values if isinstance(value, AdapterCard)),
                   key=lambda card: (card.created, card.name), reverse=True)   # fmt: skip
    return _Lists(cards, [value for value in values if isinstance(value, UnreadableFile)],
                  {card.thumbnail: card for card in cards if card.thumbnail})   # fmt: skip


@lru_cache(maxsize=64)
def _index(folder: Path, database: Path) -> FolderIndex[AdapterCard | UnreadableFile]:
    return FolderIndex(folder, database, FileReader(_VERSION, _is_adapter, _read, _store, _load))


def _is_adapter(file: str) -> bool:
    return file.lower().endswith(SUFFIX) and not file.startswith(".")


def _read(file: FileState) -> AdapterCard | UnreadableFile:
    """Read one file. What holds NaN, infinite or absurd values would spoil every picture, so it is unreadable too."""
    try:
        info = AdapterInfo.from_metadata(read_native_metadata(file.path))
    except FileError as error:
        return UnreadableFile(file.path, str(error))
    problem = adapter_problem(file.path)
    return UnreadableFile(file.path, problem) if problem else _card(file, info)


def _card(file: FileState, info: AdapterInfo) -> AdapterCard:
    picture = info.thumbnail if is_showable(info.thumbnail) else ""
    return AdapterCard(
        name=file.path.stem,
        path=file.path,
        kind=info.kind,
        trigger=info.trigger or ("" if info.algorithms else file.path.stem),
        subject=info.subject,
        base=info.base,
        title=info.title or info.base,
        family=info.family,
        bytes=file.size,
        created=_parse_time(info.created, file.modified),
        thumbnail=sha256(picture.encode()).hexdigest()[:32] if picture else "",
        pictures=info.pictures or 0,
        algorithms=", ".join(info.algorithms),
        source=info.source,
        file_hash=info.file_hash,
        hash=data_hash(file.path),
        parent=info.parent,
        sampler=info.sampler,
        notes=info.notes[:_MOST_NOTES],
    )


def _store(value: AdapterCard | UnreadableFile) -> str:
    own = {key: each for key, each in asdict(value).items() if key != "path"}
    return json.dumps({**own, "created": value.created.isoformat()} if isinstance(value, AdapterCard) else own)


def _load(file: FileState, text: str) -> AdapterCard | UnreadableFile:
    values: dict[str, Any] = parse_json(text)
    if "reason" in values:
        return UnreadableFile(file.path, str(values["reason"]))
    own = {key: str(values[key]) for key in _TEXTS}
    return AdapterCard(path=file.path, bytes=file.size, pictures=int(values["pictures"]),
                       created=_parse_time(str(values["created"]), file.modified),
                       notes=tuple(map(str, values["notes"])), **own)   # fmt: skip


_TEXTS = [field.name for field in fields(AdapterCard) if field.type == "str"]


def _parse_time(text: str, modified: int) -> datetime:
    """Read a time in ISO 8601; the file's own time (nanoseconds since 1970) where there is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(modified / 1e9, UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
