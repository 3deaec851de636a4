"""Captions in tokens: whether the text encoder reads a caption to its end, and the trigger word at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.training.config.train_config import MAX_CHUNKS
from atelier.training.data.captions import Captioner
from atelier.training.data.picture_folder import listed_names


@dataclass(frozen=True, slots=True)
class CaptionTokens:
    """How long a caption is for the text encoders, without the tokens that mark start and end."""

    count: int           # of the tokenizer that makes most of them
    limit: int           # how many are read
    trigger_end: int     # how many it takes to read the first trigger word to its end; 0: there is none
    chunk: int           # how many one chunk has

    @property
    def is_cut(self) -> bool:
        """Whether the end of the caption is not read."""
        return self.count > self.limit

    @property
    def trigger_is_cut(self) -> bool:
        """Whether the trigger word stands where nothing is read any more."""
        return self.trigger_end > self.limit

    @property
    def chunks(self) -> int:
        """How many chunks the whole caption needs."""
        return -(-max(self.count, 1) // self.chunk)


def measure_caption(tokenizers: Sequence[Any], caption: str, captioner: Captioner, chunks: int) -> CaptionTokens:
    """Measure a caption that is read in so many chunks, by each tokenizer."""
    end = captioner.end_of_trigger(caption)
    chunk = min(tokenizer.model_max_length for tokenizer in tokenizers) - 2
    return CaptionTokens(_count(tokenizers, caption), chunk * chunks, _count(tokenizers, caption[:end]), chunk)


def with_trigger_first(caption: str, captioner: Captioner, tokens: CaptionTokens) -> str:
    """The caption; begun with the trigger word if it has none that is read."""
    is_read = 0 < tokens.trigger_end <= tokens.limit
    return caption if is_read or not captioner.trigger else f"{captioner.trigger}, {caption}"


def caption_warnings(measured: Mapping[str, CaptionTokens], trigger: str) -> list[str]:
    """What is to be said about captions, by the names of their pictures."""
    unread = [name for name, tokens in measured.items() if tokens.trigger_is_cut]
    cut = [name for name, tokens in measured.items() if tokens.is_cut and not tokens.trigger_is_cut]
    warnings = []
    if unread:
        limit, cure = next(iter(measured.values())).limit, _longer(measured[name] for name in unread)
        warnings.append(
            f"The trigger word '{trigger}' comes after the {limit} tokens that are read in the caption of "
            f"{listed_names(unread)}, so it would not be learned there. Put it first (trigger_first=true){cure}, or "
            "shorten the caption.")   # fmt: skip
    if cut:
        most = max(measured[name].count for name in cut)
        limit, cure = measured[cut[0]].limit, _longer(measured[name] for name in cut)
        warnings.append(
            f"The caption of {listed_names(cut)} has up to {most} tokens, but only the first {limit} are read. Shorten "
            f"it{cure}.")   # fmt: skip
    return warnings


def _longer(measured: Iterable[CaptionTokens]) -> str:
    """How captions can be read whole, as a part of a sentence; empty where they are too long for that."""
    chunks = max(tokens.chunks for tokens in measured)
    return f", or read more of it (caption_chunks={chunks})" if chunks <= MAX_CHUNKS else ""


def _count(tokenizers: Sequence[Any], text: str) -> int:
    if not text:
        return 0
    return max(len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)
               for tokenizer in tokenizers)   # fmt: skip
