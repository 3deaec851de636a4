"""Embeddings of a library's adapters, each computed once and kept by the hash of its tensors.

The file is an index like the queue's database: deleting it only costs the time to compute it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from atelier.adapters.files import data_hash, load_adapter, read_metadata, read_tensors
from atelier.adapters.header import FileError
from atelier.adapters.retrieve import RetrieveError, Retriever, load_retriever
from atelier.training.config import EMBEDDED
from atelier.training.retriever import WEIGHTS, text_encoder_hash
from atelier.training.weights import weights_of
from atelier.training.wording import Wording

from .home import Home, write_whole
from .library import AdapterCard, adapter_hash

INDEX = "embeddings.safetensors"


@dataclass(frozen=True, slots=True)
class Reader:
    """What compares words with weights: a trained retriever, and the text encoder it was taught with."""

    retriever: Retriever
    wording: Wording
    version: str   # hash of the retriever: embeddings of another one say nothing

    def read(self, prompt: str) -> Tensor:
        """Embedding ``[E]`` of a prompt."""
        features, said = self.wording([prompt])
        return self.retriever.encode_words(features.double(), said)[0].float()

    def fits(self, scores: Tensor) -> Tensor:
        """Scores ``[N]`` → the share of adapters made for something else that would fit worse, 0 … 1."""
        mean, deviation = self.retriever.chance.float()
        return torch.special.ndtr((scores - mean) / deviation)


def reader_for(family: str) -> Reader | None:
    """The reader for adapters of a base family; None where no retriever was trained for it, or for its text encoder."""
    return _reader() if family == EMBEDDED and WEIGHTS.exists() else None


@cache
def _reader() -> Reader | None:
    retriever, known = load_retriever(WEIGHTS)
    if known.get("text_encoder") != text_encoder_hash():
        return None
    return Reader(retriever, Wording.load(), data_hash(WEIGHTS))


def embeddings(home: Home, cards: Sequence[AdapterCard], reader: Reader) -> tuple[list[AdapterCard], Tensor]:
    """The cards that can be compared, and their embeddings ``[N, E]``, from the index where they are there.

    Raises:
        HomeError: the index can't be written.
    """
    known = _read(home.state / INDEX, reader.version)
    hashes = [adapter_hash(card) for card in cards]
    missing = {hash: card for hash, card in zip(hashes, cards, strict=True) if hash not in known}
    if missing:
        known = known | {hash: _embed(card, reader) for hash, card in missing.items()}
        _write(home.state / INDEX, reader.version, known)
    able = [(card, row) for card, hash in zip(cards, hashes, strict=True) if (row := known[hash]).any()]
    return [card for card, _ in able], torch.stack([row for _, row in able]) if able else torch.zeros(0, 0)


def _embed(card: AdapterCard, reader: Reader) -> Tensor:
    """One embedding; zeros where there is none, so that a file is not tried again."""
    try:
        return reader.retriever.embed(load_adapter(card.path), weights_of(EMBEDDED))
    except (RetrieveError, FileError):
        return torch.zeros_like(reader.read(""))


def _read(path: Path, version: str) -> dict[str, Tensor]:
    """The index, by hash; empty when it is missing, damaged or of another retriever."""
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        return {}
    return _read_at(path, version, changed)


@lru_cache(maxsize=4)
def _read_at(path: Path, version: str, _changed: int) -> dict[str, Tensor]:
    with suppress(FileError, ValueError, KeyError):
        text = read_metadata(path)
        if text["version"] == version:
            return dict(zip(json.loads(text["hashes"]), read_tensors(path)["rows"].float(), strict=True))
    return {}


def _write(path: Path, version: str, known: dict[str, Tensor]) -> None:
    rows = torch.stack(list(known.values())).half()
    write_whole(path, save({"rows": rows}, {"version": version, "hashes": json.dumps(list(known))}))
