"""Textual inversions: vectors that stand for a word in the prompt, in any tool's way of naming them.

Gal et al. 2022, arXiv 2208.01618. A file of ours holds one word: its vectors ``[count, width]`` under the name of the
text encoder they are for (``text_encoder``, ``text_encoder_2``), and the word in its header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.adapters.core.family import FAMILIES
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.layer_shapes import Shape
from atelier.adapters.formats.not_adapters import is_learned_word
from atelier.adapters.formats.safetensors_header import (
    FileError,
    HeaderError,
    SafetensorsHeader,
    read_safetensors_header,
)

if TYPE_CHECKING:   # a look at a file's header does without torch
    from torch import Tensor

FIRST, SECOND = "text_encoder", "text_encoder_2"
MOST_VECTORS = 75   # a prompt of Stable Diffusion has room for no more
_SECOND_NAMES = re.compile(r"(^|\.)(clip_g|text_encoders_1|text_encoder_2)$")
_BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..+|clip_[lg]|emb_params)")
_WIDTHS = {tuple(encoder.width for encoder in family.text_encoders): family.name for family in FAMILIES.values()}


@dataclass(frozen=True, slots=True)
class WordTensors:
    """One word of a file, told from its header."""

    token: str                  # what stands for it in prompts
    family: str                 # of the base models whose text encoders it fits
    count: int                  # how many tokens of the prompt it takes
    keys: Mapping[str, str]     # text encoder → the tensor's name in the file


@dataclass(frozen=True, slots=True, eq=False)
class TextualInversion:
    """One word and its vectors; as a key of caches it is equal to itself alone."""

    token: str
    family: str
    vectors: Mapping[str, Tensor]  # text encoder → [count, width]


def is_textual_inversion(path: Path) -> bool:
    """Whether every tensor of a file is a word's, told from its header; no file that can't be read is one."""
    try:
        entries = read_safetensors_header(path)
    except (OSError, HeaderError):
        return False
    return bool(entries.tensors) and len(_shapes(entries)) == len(entries.tensors)


def find_words(path: Path) -> list[WordTensors]:
    """The words of a file, from its header: of a textual inversion, or beside the layers of an adapter.

    Raises:
        FileError: the vectors of a word fit no text encoder of Stable Diffusion, or no prompt.
    """
    entries = read_safetensors_header(path)
    own = AdapterInfo.from_metadata(entries.metadata).trigger
    shapes = _shapes(entries)
    words: dict[str, dict[str, str]] = {}
    for key, shape in shapes.items():
        _check(path, key, shape)
        words.setdefault(_token(key) or own or path.stem, {})[_encoder(key)] = key
    return [WordTensors(token, _family(path, token, keys, shapes), max(_count(shapes[key]) for key in keys.values()),
                        keys) for token, keys in words.items()]   # fmt: skip


def read_textual_inversions(path: Path) -> list[TextualInversion]:
    """The words of a file with their vectors, in float32.

    Raises:
        FileError: see :func:`find_words`; also when a vector holds something else than ordinary numbers.
    """
    from atelier.adapters.formats.check_values import value_problem
    from atelier.adapters.formats.native import read_tensors

    words, tensors = find_words(path), read_tensors(path)
    if problem := value_problem({key: tensors[key] for word in words for key in word.keys.values()}):
        raise FileError(f"{path.name} is damaged: {problem}. Download or copy it again.")
    return [TextualInversion(word.token, word.family, {
        part: tensors[key].float().reshape(-1, tensors[key].shape[-1]) for part, key in word.keys.items()})
        for word in words]   # fmt: skip


def save_textual_inversion(path: Path, word: TextualInversion, name: str, created: str) -> None:
    """Write one word in Atelier's own form; its header names the word and the family."""
    from atelier.adapters.formats.native import write_tensors

    info = AdapterInfo(name=name, trigger=word.token, family=word.family, created=created)
    write_tensors(path, {part: value.contiguous() for part, value in word.vectors.items()}, info.to_metadata())


def word_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """What finds these words in a prompt, whole and in any case, as text encoders read; the longest one counts.

    >>> word_pattern(["<fox>", "fox"]).findall("a <FOX>, not foxes: Fox")
    ['<FOX>', 'Fox']
    """
    longest_first = sorted({token for token in tokens if token}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(_whole, longest_first)) or r"(?!)", re.IGNORECASE)


def _whole(token: str) -> str:
    before, after = (r"\b" if re.fullmatch(r"\w", sign) else "" for sign in (token[0], token[-1]))
    return f"{before}{re.escape(token)}{after}"


def _shapes(entries: SafetensorsHeader) -> dict[str, Shape]:
    """The tensors that are words'."""
    return {key: entry.shape for key, entry in entries.tensors.items()
            if is_learned_word(key, entry.shape) or (key in (FIRST, SECOND) and len(entry.shape) == 2)}   # fmt: skip


def _token(key: str) -> str:
    """The word that a tensor's name says; empty where the file's own name is the word, as in A1111."""
    if found := _BUNDLED.fullmatch(key):
        return found[1]
    return key if key.startswith("<") else ""


def _encoder(key: str) -> str:
    return SECOND if _SECOND_NAMES.search(key) else FIRST


def _count(shape: Shape) -> int:
    return prod(shape[:-1])


def _check(path: Path, key: str, shape: Shape) -> None:
    if len(shape) == 3 and shape[0] > 1:
        raise FileError(f"{path.name} has other vectors for every layer of the UNet (XTI), which Atelier can't use. "
                        "Look for a plain textual inversion.")
    if not 1 <= _count(shape) <= MOST_VECTORS:
        raise FileError(f"{path.name} can't be used: {key} has {_count(shape)} vectors, but a prompt has room for "
                        f"{MOST_VECTORS} tokens.")


def _family(path: Path, token: str, keys: Mapping[str, str], shapes: Mapping[str, Shape]) -> str:
    widths = tuple(shapes[keys[part]][-1] for part in (FIRST, SECOND) if part in keys)
    if widths not in _WIDTHS:
        raise FileError(f"{path.name} can't be used: the vectors of {token} have the width "
                        f"{' and '.join(map(str, widths))}, which fits the text encoders of no base model here.")
    return _WIDTHS[widths]
