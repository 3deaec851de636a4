"""Base models in folders: what each is, what it needs, and which adapters of the library fit it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from atelier.adapters.core.family import FAMILIES, family_title
from atelier.app.store.home import Home, HomeError, write_whole
from atelier.app.store.library import AdapterCard, list_adapters
from atelier.app.text import settings as settings_words
from atelier.app.text import shared
from atelier.training.base_models.base_info import BaseError, BaseInfo
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import EMBEDDED

INDEX_FILE = "model_index.json"
CHECKPOINTS = (".safetensors", ".ckpt")
MIN_CHECKPOINT_BYTES = 100_000_000   # smaller files are adapters, embeddings, parts: not worth a line each
MAX_DEPTH = 6                 # folders within folders; links can make circles


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One thing that was found: what it is, or why it can't be used."""

    path: Path
    info: BaseInfo | None = None
    reason: str = ""

    def fitting(self, cards: Sequence[AdapterCard]) -> list[str]:
        """Names of the adapters that were made for a base of this family."""
        return [card.name for card in cards if self.info and card.family == self.info.family]


def scan_models(folder: Path) -> list[ModelEntry]:
    """Every diffusers folder and checkpoint under a folder, by name. Only headers are read.

    Raises:
        HomeError: there is no such folder.
    """
    if not folder.is_dir():
        what = "is a file: use `atelier models show`" if folder.exists() else "does not exist: check the path"
        raise HomeError(f"{folder} {what}.")
    return [_identify(path, *_version(path)) for path in sorted(_candidates(folder))]


def model_folders(home: Home) -> list[Path]:
    """The folders a person keeps base models in."""
    with suppress(FileNotFoundError):
        return [Path(line) for line in home.models.read_text(encoding="utf-8").splitlines()]
    return []


def save_model_folders(home: Home, text: str) -> list[Path]:
    """Remember the folders that base models are in, one a line.

    Raises:
        HomeError: one is no folder, or the home can't be written.
    """
    folders = [Path(line.strip()).expanduser().absolute() for line in text.splitlines() if line.strip()]
    for folder in folders:
        if not folder.is_dir():
            raise HomeError(settings_words.not_a_folder(folder))
    write_whole(home.models, "".join(f"{folder}\n" for folder in folders).encode())
    return folders


def find_models(home: Home) -> list[ModelEntry]:
    """What is in all remembered folders; one that is gone, such as a disk that is not plugged in, holds nothing."""
    folders = [home.bases, *model_folders(home)]
    found = {model.path: model for folder in folders if folder.is_dir() for model in scan_models(folder)}
    return list(found.values())


def base_choices(home: Home) -> list[tuple[str, str]]:
    """Base models to choose from, as (title, base): the embedded one, those found, those of the adapters here."""
    names = {card.base: card.title for card in list_adapters(home) if card.base}
    names |= {str(model.path): shared.base_title(model.info.title, model.info.kind, model.info.precision)
              for model in find_models(home) if model.info}   # fmt: skip
    names.pop(EMBEDDED, None)
    return [(identify(EMBEDDED).title, EMBEDDED), *((title, base) for base, title in names.items())]


def _candidates(folder: Path, depth: int = 0) -> Iterator[Path]:
    with suppress(OSError):   # what may not be read holds nothing for us
        for path in folder.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir() and depth < MAX_DEPTH:
                yield from [path] if (path / INDEX_FILE).exists() else _candidates(path, depth + 1)
            elif path.suffix.lower() in CHECKPOINTS and path.stat().st_size >= MIN_CHECKPOINT_BYTES:
                yield path


def _version(path: Path) -> tuple[int, int]:
    """What changes when a model does."""
    facts = (path / INDEX_FILE if path.is_dir() else path).stat()
    return facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=1024)
def _identify(path: Path, _modified: int, _size: int) -> ModelEntry:
    # The time and size are arguments so that a changed file is read again.
    try:
        return ModelEntry(path, identify(str(path)))
    except BaseError as error:
        return ModelEntry(path, reason=str(error))


def resolve_base(home: Home, text: str) -> str:
    """The base model that a person means: a compressed one of the home by its name, else whatever was said."""
    return str(home.bases / text) if (home.bases / text / INDEX_FILE).exists() else text


def check_family(info: BaseInfo, cards: Sequence[AdapterCard]) -> None:
    """Say in names what mounting would say in shapes.

    Raises:
        HomeError: an adapter was made for another family of base models.
    """
    for card in cards:
        if card.family in FAMILIES and card.family != info.family:
            such_as = f", such as {card.title}" if card.title else ""
            raise HomeError(f"{card.name} was made for {family_title(card.family)}, but {info.title} is "
                            f"{family_title(info.family)}. Choose a base model of the adapter's family{such_as}.")
