"""How long a prompt is to a base model: its tokens, and where the text encoder's chunks end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atelier.app.store.home import Home
from atelier.app.store.textual_inversions import inversions_in_prompts
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.base_models.tokenizers import load_tokenizers
from atelier.training.sampling.prompt_encoding import PLAIN
from atelier.training.sampling.prompt_syntax import parse_weights, split_adapters

_LAST_TOKENS = 4   # of a chunk, that are shown to find its end in the prompt


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of a prompt, those that one chunk holds, and the last words of each chunk but the last."""

    tokens: int
    chunk_tokens: int
    chunk_ends: tuple[str, ...] = ()
    is_cut: bool = False   # what comes after the first chunk is not read


def count_prompt_tokens(home: Home, base: str, prompt: str, syntax: str = "") -> TokenCount | None:
    """Count by the base model's own (first) tokenizer; None where it is not on this machine."""
    try:
        tokenizers = load_tokenizers(identify(base))
    except BaseError:
        return None
    if not tokenizers:
        return None
    tokenizer, room = tokenizers[0], tokenizers[0].model_max_length - 2
    parts = [prompt] if syntax == PLAIN else _parts(home, prompt)
    chunks = [ids[first : first + room] for ids in (_ids(tokenizer, part) for part in parts)
              for first in range(0, max(len(ids), 1), room)]   # fmt: skip
    ends = tuple(tokenizer.decode(chunk[-_LAST_TOKENS:]).strip() for chunk in chunks[:-1])
    return TokenCount(sum(map(len, chunks)), room, ends, is_cut=syntax == PLAIN and bool(ends))


def _parts(home: Home, prompt: str) -> list[str]:
    """What is read between BREAKs, without the signs of weights; a textual inversion counts by its vectors."""
    text, _ = split_adapters(prompt)
    for card in inversions_in_prompts(home, [text]):
        text = text.replace(card.token, " ".join(["a"] * card.vectors))
    return ["".join(piece.text for piece in part) for part in parse_weights(text)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
