"""Embeddings of a library's adapters, each computed once and stored under the hash of its tensors.

The file is an index, like the queue's database: deleting it costs only the time to compute it again.
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

from atelier.adapters.core.parse import parse_json
from atelier.adapters.formats.native import data_hash, load_adapter, read_metadata, read_tensors
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.retrieval import RetrieveError, Retriever, load_retriever
from atelier.app.store.home import Home, write_home_file
from atelier.app.store.library import AdapterCard
from atelier.training.base_models.bundled import RETRIEVER, text_encoder_hash
from atelier.training.base_models.weights import weight_lookup
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.prompt_features import PromptEncoder

INDEX_FILE = "embeddings.safetensors"


@dataclass(frozen=True, slots=True)
class PromptRetriever:
    """Compares prompts with weights: a trained retriever, and the text encoder it was trained with."""

    retriever: Retriever
    prompt_encoder: PromptEncoder
    version: str   # hash of the retriever's file: embeddings of another retriever can't be compared

    def embed_prompt(self, prompt: str) -> Tensor:
        """Embedding ``[E]`` of a prompt."""
        features, is_word = self.prompt_encoder([prompt])
        return self.retriever.encode_words(features.double(), is_word)[0].float()

    def percentiles(self, scores: Tensor) -> Tensor:
        """Scores ``[N]`` → how many of the adapters made for something else would score lower, 0 … 1."""
        mean, deviation = self.retriever.chance.float()
        return torch.special.ndtr((scores - mean) / deviation)


def retriever_for(family: str) -> PromptRetriever | None:
    """The retriever for a base family; None where none was trained for it, or for another text encoder."""
    return _load_retriever(RETRIEVER) if family == EMBEDDED and RETRIEVER.exists() else None


@cache
def _load_retriever(path: Path) -> PromptRetriever | None:
    retriever, known = load_retriever(path)
    if known.get("text_encoder") != text_encoder_hash():
        return None
    return PromptRetriever(retriever, PromptEncoder.load(), data_hash(path))


@dataclass(frozen=True, slots=True)
class EmbeddingIndex:
    """Hashes of adapter files, and an embedding for each hash: all zeros where the adapter has none."""

    files: dict[str, tuple[int, int, str]]   # name → modification time, size, hash of the tensors
    rows_by_hash: dict[str, int]             # hash → row of ``embeddings``
    embeddings: Tensor                       # [N, E] float32


def adapter_scores(
    home: Home, cards: Sequence[AdapterCard], retriever: PromptRetriever, prompt: str
) -> dict[str, float]:
    """How well adapters fit a prompt, 0 … 1, by name; those without an embedding are left out.

    Raises:
        HomeError: the index can't be written.
    """
    index = _update_index(home.state / INDEX_FILE, cards, retriever)
    if not cards:
        return {}
    scores = score_embeddings(index.embeddings, retriever, prompt).tolist()
    rows = {card.name: index.rows_by_hash[index.files[card.path.name][2]] for card in cards}
    has_embedding = index.embeddings.any(1).tolist()
    return {name: scores[row] for name, row in rows.items() if has_embedding[row]}


def score_embeddings(embeddings: Tensor, retriever: PromptRetriever, prompt: str) -> Tensor:
    """Embeddings ``[N, E]`` → how well each fits the prompt, ``[N]`` in 0 … 1."""
    return retriever.percentiles(embeddings @ retriever.embed_prompt(prompt))


def _update_index(path: Path, cards: Sequence[AdapterCard], retriever: PromptRetriever) -> EmbeddingIndex:
    """Add the adapters that are new or changed to the index and return it."""
    index = _read_index(path, retriever.version)
    facts = {card.path.name: (card.path.stat().st_mtime_ns, card.bytes) for card in cards}
    changed = [card for card in cards if index.files.get(card.path.name, ())[:2] != facts[card.path.name]]
    if not changed:
        return index
    hashes = {card.path.name: data_hash(card.path) for card in changed}
    missing = {hashes[card.path.name]: card for card in changed if hashes[card.path.name] not in index.rows_by_hash}
    embeddings = [_embed(card, retriever) for card in missing.values()]
    files = {**index.files, **{name: (*facts[name], hash) for name, hash in hashes.items()}}
    rows = torch.stack([*index.embeddings, *embeddings])
    _write_index(path, retriever.version, files, [*index.rows_by_hash, *missing], rows)
    return _read_index(path, retriever.version)


def _embed(card: AdapterCard, retriever: PromptRetriever) -> Tensor:
    """An adapter's embedding; zeros where it has none, so that the file is not tried again."""
    none = torch.zeros_like(retriever.embed_prompt(""))
    try:
        embedding = retriever.retriever.embed(load_adapter(card.path), weight_lookup(EMBEDDED))
    except (RetrieveError, FileError, RuntimeError):   # torch's own where tensors don't fit each other
        return none
    return embedding if embedding.isfinite().all() else none


def _read_index(path: Path, version: str) -> EmbeddingIndex:
    """Read the index; an empty one when it is missing, damaged or of another retriever."""
    try:
        return _read_version(path, version, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return EmbeddingIndex({}, {}, torch.zeros(0, 0))


@lru_cache(maxsize=4)
def _read_version(path: Path, version: str, _changed: int) -> EmbeddingIndex:
    with suppress(FileError, ValueError, KeyError, TypeError):
        metadata = read_metadata(path)
        files = {name: (time, size, hash) for name, (time, size, hash) in parse_json(metadata["files"]).items()}
        rows = {hash: row for row, hash in enumerate(parse_json(metadata["hashes"]))}
        if metadata["version"] == version:
            return EmbeddingIndex(files, rows, read_tensors(path)["rows"].float())
    return EmbeddingIndex({}, {}, torch.zeros(0, 0))


def _write_index(
    path: Path, version: str, files: Mapping[str, tuple[int, int, str]], hashes: Sequence[str], embeddings: Tensor
) -> None:
    metadata = {"version": version, "files": json.dumps(files), "hashes": json.dumps(hashes)}
    write_home_file(path, save({"rows": embeddings.half()}, metadata))
