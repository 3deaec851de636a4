"""Base models in a person's folders: what each one is, and which adapters of the library fit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType

from atelier.adapters.core.family import FAMILIES, family_title
from atelier.adapters.core.parse import parse_path
from atelier.app.store.base_settings import base_options
from atelier.app.store.home import Home, HomeError, write_home_file
from atelier.app.store.library import AdapterCard, list_adapters
from atelier.app.text import settings as settings_words
from atelier.app.text import shared
from atelier.training.base_models.base_info import BaseError, BaseInfo
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import PLAIN_BASE, BaseOptions
from atelier.training.config.train_config import EMBEDDED

INDEX_FILE = "model_index.json"
CHECKPOINTS = (".safetensors", ".ckpt")
MIN_CHECKPOINT_BYTES = 100_000_000   # smaller files are adapters, embeddings or parts of a model
MAX_DEPTH = 6                        # folders within folders; links can make circles


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A base model that was found, or something like it with the reason why it can't be used."""

    path: Path
    info: BaseInfo | None = None
    reason: str = ""

    def fitting_adapters(self, cards: Sequence[AdapterCard]) -> list[str]:
        """Names of the adapters that were made for a base model of this family."""
        return [card.name for card in cards if self.info and card.family == self.info.family]


def scan_models(folder: Path, options: Callable[[str], BaseOptions] = lambda _: PLAIN_BASE) -> list[ModelEntry]:
    """Find every diffusers folder and checkpoint under a folder, sorted by name. Only headers are read.

    ``options`` says what was set for a model.

    Raises:
        HomeError: there is no such folder.
    """
    if not folder.is_dir():
        what = "is a file: use `atelier models show`" if folder.exists() else "does not exist: check the path"
        raise HomeError(f"{folder} {what}.")
    return [_identify(path, options(str(path)), *_version(path)) for path in sorted(_candidates(folder))]


def model_folders(home: Home) -> list[Path]:
    """The folders in which Atelier looks for base models."""
    with suppress(OSError):
        return [Path(line) for line in home.models.read_text(encoding="utf-8", errors="replace").splitlines()]
    return []


def save_model_folders(home: Home, text: str) -> list[Path]:
    """Save the folders in which Atelier looks for base models; ``text`` has one a line.

    Raises:
        HomeError: one is not a folder, or the home can't be written.
    """
    folders = [parse_path(line.strip()).absolute() for line in text.splitlines() if line.strip()]
    for folder in folders:
        if not folder.is_dir():
            raise HomeError(settings_words.not_a_folder(folder))
    write_home_file(home.models, "".join(f"{folder}\n" for folder in folders).encode())
    return folders


def find_models(home: Home) -> list[ModelEntry]:
    """Find base models in the home and in all saved folders; folders that are missing at the moment are skipped."""
    folders, options = [home.bases, *model_folders(home)], partial(base_options, home)
    found = {model.path: model for folder in folders if _is_folder(folder) for model in scan_models(folder, options)}
    return list(found.values())


def _is_folder(path: Path) -> bool:
    """Whether a path is that of a folder; one that is no path at all, such as a very long one, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def base_choices(home: Home, downloadable: Mapping[str, str] = MappingProxyType({})) -> list[tuple[str, str]]:
    """Base models to choose from, as (title, base): the embedded one, those found, those of the library's adapters.

    ``downloadable`` are others, id → title.
    """
    names = {card.base: card.title for card in list_adapters(home) if card.base}
    names |= {str(model.path): shared.base_title(model.info.title, model.info.kind, model.info.precision)
              for model in find_models(home) if model.info}   # fmt: skip
    names.pop(EMBEDDED, None)
    names |= {id: title for id, title in downloadable.items() if id not in names}
    return [(identify(EMBEDDED).title, EMBEDDED), *((title, base) for base, title in names.items())]


def _candidates(folder: Path, depth: int = 0) -> Iterator[Path]:
    with suppress(OSError):   # folders that may not be read are skipped
        for path in folder.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir() and depth < MAX_DEPTH:
                yield from [path] if (path / INDEX_FILE).exists() else _candidates(path, depth + 1)
            elif path.suffix.lower() in CHECKPOINTS and path.stat().st_size >= MIN_CHECKPOINT_BYTES:
                yield path


def _version(path: Path) -> tuple[int, int]:
    """Modification time and size of the file that changes with the model."""
    facts = (path / INDEX_FILE if path.is_dir() else path).stat()
    return facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=1024)
def _identify(path: Path, options: BaseOptions, _modified: int, _size: int) -> ModelEntry:
    # The time and size are arguments so that a changed file is read again.
    try:
        return ModelEntry(path, identify(str(path), options))
    except BaseError as error:
        return ModelEntry(path, reason=str(error))


def resolve_base(home: Home, text: str) -> str:
    """The base model that a person named: the folder of a compressed one of the home, else the name itself."""
    return str(home.bases / text) if parse_path(str(home.bases / text / INDEX_FILE)).exists() else text


def check_family(info: BaseInfo, cards: Sequence[AdapterCard]) -> None:
    """Refuse adapters of another family before mounting does, which can name only layers and shapes.

    Raises:
        HomeError: an adapter was made for another family of base models.
    """
    for card in cards:
        if card.family in FAMILIES and card.family != info.family:
            such_as = f", such as {card.title}" if card.title else ""
            here = family_title(info.family)
            is_another = f"{info.title} is {here}" if info.title != here else f"the base model is {here}"
            raise HomeError(f"{card.name} was made for {family_title(card.family)}, but {is_another}. Choose a base "
                            f"model of the adapter's family{such_as}.")
