"""Base models in a folder: what each is, what it needs, and which adapters of the library fit it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.training.base_info import BaseError, BaseInfo
from atelier.training.identify import identify

from .home import HomeError
from .library import AdapterCard

INDEX = "model_index.json"
CHECKPOINTS = (".safetensors", ".ckpt")
LEAST_BYTES = 100_000_000   # smaller files are adapters, embeddings, parts: not worth a line each


@dataclass(frozen=True, slots=True)
class Model:
    """One thing that was found: what it is, or why it can't be used."""

    path: Path
    info: BaseInfo | None = None
    reason: str = ""

    def fitting(self, cards: Sequence[AdapterCard]) -> list[str]:
        """Names of the adapters that were made for a base of this family."""
        return [card.name for card in cards if self.info and card.family == self.info.family]


def scan_models(folder: Path) -> list[Model]:
    """Every diffusers folder and checkpoint under a folder, by name. Only headers are read.

    Raises:
        HomeError: there is no such folder.
    """
    if not folder.is_dir():
        what = "is a file: use `atelier models show`" if folder.exists() else "does not exist: check the path"
        raise HomeError(f"{folder} {what}.")
    return [_look(path) for path in sorted(_candidates(folder))]


def _candidates(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from [path] if (path / INDEX).exists() else _candidates(path)
        elif path.suffix.lower() in CHECKPOINTS and path.stat().st_size >= LEAST_BYTES:
            yield path


def _look(path: Path) -> Model:
    try:
        return Model(path, identify(str(path)))
    except BaseError as error:
        return Model(path, reason=str(error))
