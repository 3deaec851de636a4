"""Prompts → what the UNet reads: any length, weighted words, layers of the text encoder left out.

A text encoder reads as many tokens as it was made for, 75 of Stable Diffusion. A longer prompt is cut into chunks of
that length, each is read by itself, and the UNet attends to all of them, as in A1111. So is the way a weight acts: the
embedding of the word is multiplied, and all embeddings of its chunk are scaled back to the mean they had before.

Where the word of a textual inversion stands, its vectors are read in place of token embeddings (Gal et al. 2022, arXiv
2208.01618). The ids beneath them are ordinary ones: an id of its own, as diffusers adds, would be taken for the end of
the text by encoders that look for the largest one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atelier.adapters.textual_inversion import FIRST, SECOND, TextualInversion, word_pattern
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.sampling.prompt_syntax import WeightedText, parse_weights

WEIGHTS, PLAIN = "weights", "plain"


@dataclass(frozen=True, slots=True)
class PromptReading:
    """How prompts are read.

    `syntax`: ``weights`` as :mod:`prompt_syntax` says, at any length; ``plain``: every sign is a word, and what the
    text encoder has no place for is cut off. `clip_skip`: so many of its last layers are left out. `inversions`: their
    words are read as their vectors, with the syntax ``weights``.
    """

    syntax: str = PLAIN
    clip_skip: int = 0
    inversions: tuple[TextualInversion, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a text encoder reads at once: ids with start, end and padding, and a weight for each, [T].

    `vectors` [D] by position: what is read there in place of the id's embedding.
    """

    ids: list[int]
    weights: list[float]
    vectors: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Token:
    id: int
    weight: float
    vector: Tensor | None = None   # [D]


Words = Mapping[str, Tensor]   # word in lower case → its vectors [count, D] for one text encoder


def chunks(tokenizer: Any, prompt: str, words: Words | None = None) -> list[Chunk]:
    """The chunks of a prompt with weights, at least one; BREAK begins a new one."""
    found: list[Chunk] = []
    room = tokenizer.model_max_length - 2
    for part in parse_weights(prompt):
        tokens = _tokens(tokenizer, part, words or {})
        found += [_filled(tokenizer, tokens[first : first + room]) for first in range(0, max(len(tokens), 1), room)]
    return found


def count_tokens(tokenizer: Any, prompt: str, words: Words | None = None) -> int:
    """The tokens of a prompt, without those that mark start, end and padding."""
    return sum(len(_tokens(tokenizer, part, words or {})) for part in parse_weights(prompt))


def first_encoder_tokens(model: BaseModel, text: str, reading: PromptReading) -> int:
    """How many tokens the first text encoder reads of a text."""
    if reading.syntax == PLAIN:
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)
    return count_tokens(model.tokenizer, text, _words(reading, FIRST))


def encode_prompt(model: BaseModel, prompt: str, reading: PromptReading, copies: int = 1) -> PromptEmbeddings:
    """Encode a prompt by the text encoders as they are now: ``copies`` rows ``[copies, chunks · T, D]``.

    Adapters can make the rows differ. The pooled embedding of Stable Diffusion XL is the first chunk's.
    """
    if reading.syntax == PLAIN:
        return encode_text(model, tokenize(model, [prompt] * copies), reading.clip_skip)
    cut = [chunks(tokenizer, prompt, _words(reading, name))
           for (tokenizer, _), name in zip(model.tokenizers_and_encoders, (FIRST, SECOND), strict=False)]
    count = max(len(each) for each in cut)
    empty = [chunks(tokenizer, "")[0] for tokenizer, _ in model.tokenizers_and_encoders]
    # Two tokenizers may cut differently: both get the same number of chunks.
    cut = [[*each, *[blank] * (count - len(each))] for each, blank in zip(cut, empty, strict=True)]
    features, pooled = [], None
    for chunk in zip(*cut, strict=True):   # one chunk of each tokenizer
        ids = torch.tensor([[token for each in chunk for token in each.ids]] * copies)
        with _reading_vectors(model, [each.vectors for each in chunk]):
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


def _words(reading: PromptReading, encoder: str) -> dict[str, Tensor]:
    """The vectors of the textual inversions for one text encoder."""
    return {one.token.lower(): one.vectors[encoder] for one in reading.inversions if encoder in one.vectors}


def _tokens(tokenizer: Any, part: Sequence[WeightedText], words: Words) -> list[_Token]:
    found: list[_Token] = []
    for piece in part:
        for text, vectors in _split(piece.text, words):
            if vectors is not None:
                found += [_Token(0, piece.weight, vector) for vector in vectors]
            elif text:
                ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
                found += [_Token(id, piece.weight) for id in ids]
    return found


def _split(text: str, words: Words) -> Iterator[tuple[str, Tensor | None]]:
    """Pieces of a text: plain ones with None, words with their vectors."""
    end = 0
    for match in word_pattern(words).finditer(text):
        yield text[end : match.start()], None
        yield match[0], words[match[0].lower()]
        end = match.end()
    yield text[end:], None


def _filled(tokenizer: Any, tokens: Sequence[_Token]) -> Chunk:
    padding = tokenizer.model_max_length - 2 - len(tokens)
    return Chunk(
        [tokenizer.bos_token_id, *(token.id for token in tokens), tokenizer.eos_token_id,
         *[tokenizer.pad_token_id] * padding],
        [1.0, *(token.weight for token in tokens), 1.0, *[1.0] * padding],
        {place: token.vector for place, token in enumerate(tokens, 1) if token.vector is not None},
    )   # fmt: skip


@contextmanager
def _reading_vectors(model: BaseModel, vectors: Sequence[Mapping[int, Tensor]]) -> Iterator[None]:
    """While this is open, each text encoder reads its vectors at their positions."""
    def replacing(own: Mapping[int, Tensor]) -> Any:
        """A hook on the table of token embeddings, [B, T, D]."""
        def hook(_table: object, _ids: object, output: Tensor) -> Tensor:
            """What the encoder reads."""
            rows = [own.get(place) for place in range(output.shape[1])]
            return torch.stack([output[:, place] if row is None else row.to(output).expand(len(output), -1)
                                for place, row in enumerate(rows)], 1)

        return hook

    with ExitStack() as stack:
        for encoder, own in zip(model.text_encoders, vectors, strict=True):
            if own:
                handle = encoder.get_input_embeddings().register_forward_hook(replacing(own))
                stack.callback(handle.remove)
        yield


def _weighted(features: Tensor, weights: Sequence[float]) -> Tensor:
    if all(weight == 1 for weight in weights):
        return features
    scaled = features * torch.tensor(weights, device=features.device, dtype=features.dtype)[:, None]
    return scaled * (features.mean((1, 2), keepdim=True) / scaled.mean((1, 2), keepdim=True))
