"""Prompts → what the UNet reads: any length, weighted words, layers of the text encoder left out.

A text encoder reads as many tokens as it was made for, 75 of Stable Diffusion. A longer prompt is cut into chunks of
that length, each is read by itself, and the UNet attends to all of them, as in A1111. So is the way a weight acts: the
embedding of the word is multiplied, and all embeddings of its chunk are scaled back to the mean they had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.sampling.prompt_syntax import WeightedText, parse_weights

WEIGHTS, PLAIN = "weights", "plain"


@dataclass(frozen=True, slots=True)
class PromptReading:
    """How prompts are read.

    `syntax`: ``weights`` as :mod:`prompt_syntax` says, at any length; ``plain``: every sign is a word, and what the
    text encoder has no place for is cut off. `clip_skip`: so many of its last layers are left out.
    """

    syntax: str = PLAIN
    clip_skip: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a text encoder reads at once: ids with start, end and padding, and a weight for each, [T]."""

    ids: list[int]
    weights: list[float]


def chunks(tokenizer: Any, prompt: str) -> list[Chunk]:
    """The chunks of a prompt with weights, at least one; BREAK begins a new one."""
    found: list[Chunk] = []
    room = tokenizer.model_max_length - 2
    for part in parse_weights(prompt):
        ids, weights = _tokens(tokenizer, part)
        for first in range(0, max(len(ids), 1), room):
            found.append(_filled(tokenizer, ids[first : first + room], weights[first : first + room]))
    return found


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """The tokens of a prompt, without those that mark start, end and padding."""
    return sum(len(_tokens(tokenizer, part)[0]) for part in parse_weights(prompt))


def encode_prompt(model: BaseModel, prompt: str, reading: PromptReading, copies: int = 1) -> PromptEmbeddings:
    """Encode a prompt by the text encoders as they are now: ``copies`` rows ``[copies, chunks · T, D]``.

    Adapters can make the rows differ. The pooled embedding of Stable Diffusion XL is the first chunk's.
    """
    if reading.syntax == PLAIN:
        return encode_text(model, tokenize(model, [prompt] * copies), reading.clip_skip)
    cut = [chunks(tokenizer, prompt) for tokenizer, _ in model.tokenizers_and_encoders]
    count = max(len(each) for each in cut)
    empty = [chunks(tokenizer, "")[0] for tokenizer, _ in model.tokenizers_and_encoders]
    # Two tokenizers may cut differently: both get the same number of chunks.
    cut = [[*each, *[blank] * (count - len(each))] for each, blank in zip(cut, empty, strict=True)]
    features, pooled = [], None
    for chunk in zip(*cut, strict=True):   # one chunk of each tokenizer
        ids = torch.tensor([[token for each in chunk for token in each.ids]] * copies)
        read = encode_text(model, ids, reading.clip_skip)
        pooled = read.pooled if pooled is None else pooled
        features.append(_weighted(read.features, chunk[0].weights))
    return PromptEmbeddings(torch.cat(features, 1), pooled)


def same_length(model: BaseModel, texts: Sequence[PromptEmbeddings], reading: PromptReading) -> list[PromptEmbeddings]:
    """Lengthen the shorter ones by chunks that say nothing, so that they fit into one batch."""
    longest = max(text.features.shape[1] for text in texts)
    if all(text.features.shape[1] == longest for text in texts):
        return list(texts)
    blank = encode_prompt(model, "", reading).features
    return [PromptEmbeddings(_lengthened(text.features, blank, longest), text.pooled) for text in texts]


def _lengthened(features: Tensor, blank: Tensor, length: int) -> Tensor:
    missing = (length - features.shape[1]) // blank.shape[1]
    return torch.cat([features, *[blank.expand(len(features), -1, -1)] * missing], 1)


def _tokens(tokenizer: Any, part: Sequence[WeightedText]) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for piece in part:
        new = tokenizer(piece.text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        ids += new
        weights += [piece.weight] * len(new)
    return ids, weights


def _filled(tokenizer: Any, ids: list[int], weights: list[float]) -> Chunk:
    padding = tokenizer.model_max_length - 2 - len(ids)
    return Chunk(
        [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding],
        [1.0, *weights, 1.0, *[1.0] * padding],
    )


def _weighted(features: Tensor, weights: Sequence[float]) -> Tensor:
    if all(weight == 1 for weight in weights):
        return features
    scaled = features * torch.tensor(weights, device=features.device, dtype=features.dtype)[:, None]
    return scaled * (features.mean((1, 2), keepdim=True) / scaled.mean((1, 2), keepdim=True))
