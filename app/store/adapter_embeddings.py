"""Embeddings of a library's adapters, each computed once and kept by the hash of its tensors.

The file is an index like the queue's database: deleting it only costs the time to compute it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from atelier.adapters.formats.native import data_hash, load_adapter, read_metadata, read_tensors
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.retrieval import RetrieveError, Retriever, load_retriever
from atelier.app.store.home import Home, write_whole
from atelier.app.store.library import AdapterCard
from atelier.training.base_models.bundled import RETRIEVER, text_encoder_hash
from atelier.training.base_models.weights import weight_lookup
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.prompt_features import PromptEncoder

INDEX_FILE = "embeddings.safetensors"


@dataclass(frozen=True, slots=True)
class PromptReader:
    """What compares words with weights: a trained retriever, and the text encoder it was taught with."""

    retriever: Retriever
    prompt_encoder: PromptEncoder
    version: str   # hash of the retriever: embeddings of another one say nothing

    def read(self, prompt: str) -> Tensor:
        """Embedding ``[E]`` of a prompt."""
        features, said = self.prompt_encoder([prompt])
        return self.retriever.encode_words(features.double(), said)[0].float()

    def fits(self, scores: Tensor) -> Tensor:
        """Scores ``[N]`` → the share of adapters made for something else that would fit worse, 0 … 1."""
        mean, deviation = self.retriever.chance.float()
        return torch.special.ndtr((scores - mean) / deviation)


def prompt_reader_for(family: str) -> PromptReader | None:
    """The reader for adapters of a base family; None where no retriever was trained for it, or for its text encoder."""
    return _reader(RETRIEVER) if family == EMBEDDED and RETRIEVER.exists() else None


@cache
def _reader(path: Path) -> PromptReader | None:
    retriever, known = load_retriever(path)
    if known.get("text_encoder") != text_encoder_hash():
        return None
    return PromptReader(retriever, PromptEncoder.load(), data_hash(path))


@dataclass(frozen=True, slots=True)
class EmbeddingIndex:
    """What is known of files: their hashes, and by hash an embedding, all zeros where there is none."""

    files: dict[str, tuple[int, int, str]]   # name → time of the file, its size, hash of its tensors
    places: dict[str, int]                   # hash → row
    rows: Tensor                             # [N, E] float32


def adapter_scores(home: Home, cards: Sequence[AdapterCard], reader: PromptReader, prompt: str) -> dict[str, float]:
    """How well adapters fit a prompt, by name; those that can't be compared with words are left out.

    Raises:
        HomeError: the index can't be written.
    """
    index = _update_index(home.state / INDEX_FILE, cards, reader)
    if not cards:
        return {}
    shares = scores_of_rows(index.rows, reader, prompt).tolist()
    places = {card.name: index.places[index.files[card.path.name][2]] for card in cards}
    able = index.rows.any(1).tolist()
    return {name: shares[place] for name, place in places.items() if able[place]}


def scores_of_rows(rows: Tensor, reader: PromptReader, prompt: str) -> Tensor:
    """Embeddings ``[N, E]`` → how well each fits the prompt, ``[N]`` in 0 … 1."""
    return reader.fits(rows @ reader.read(prompt))


def _update_index(path: Path, cards: Sequence[AdapterCard], reader: PromptReader) -> EmbeddingIndex:
    """The index with all these adapters in it."""
    index = _read(path, reader.version)
    facts = {card.path.name: (card.path.stat().st_mtime_ns, card.bytes) for card in cards}
    changed = [card for card in cards if index.files.get(card.path.name, ())[:2] != facts[card.path.name]]
    if not changed:
        return index
    hashes = {card.path.name: data_hash(card.path) for card in changed}
    missing = {hashes[card.path.name]: card for card in changed if hashes[card.path.name] not in index.places}
    rows = [_embed(card, reader) for card in missing.values()]
    files = {**index.files, **{name: (*facts[name], hash) for name, hash in hashes.items()}}
    places = [*index.places, *missing]
    _write(path, reader.version, files, places, torch.stack([*index.rows, *rows]))
    return _read(path, reader.version)


def _embed(card: AdapterCard, reader: PromptReader) -> Tensor:
    """One embedding; zeros where there is none, so that a file is not tried again."""
    nothing = torch.zeros_like(reader.read(""))
    try:
        found = reader.retriever.embed(load_adapter(card.path), weight_lookup(EMBEDDED))
    except (RetrieveError, FileError, RuntimeError):   # torch's own where tensors don't fit each other
        return nothing
    return found if found.isfinite().all() else nothing


def _read(path: Path, version: str) -> EmbeddingIndex:
    """The index; empty when it is missing, damaged or of another retriever."""
    try:
        return _read_at(path, version, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return EmbeddingIndex({}, {}, torch.zeros(0, 0))


@lru_cache(maxsize=4)
def _read_at(path: Path, version: str, _changed: int) -> EmbeddingIndex:
    with suppress(FileError, ValueError, KeyError, TypeError):
        text = read_metadata(path)
        files = {name: (time, size, hash) for name, (time, size, hash) in json.loads(text["files"]).items()}
        places = {hash: place for place, hash in enumerate(json.loads(text["hashes"]))}
        if text["version"] == version:
            return EmbeddingIndex(files, places, read_tensors(path)["rows"].float())
    return EmbeddingIndex({}, {}, torch.zeros(0, 0))


def _write(
    path: Path, version: str, files: Mapping[str, tuple[int, int, str]], hashes: Sequence[str], rows: Tensor
) -> None:
    text = {"version": version, "files": json.dumps(files), "hashes": json.dumps(hashes)}
    write_whole(path, save({"rows": rows.half()}, text))
