"""Textual inversions: vectors that stand for a word in the prompt, in any tool's way of naming them.

Gal et al. 2022, arXiv 2208.01618. A file of ours holds one word: its vectors ``[count, width]`` under the name of the
text encoder they are for (``text_encoder``, ``text_encoder_2``), and the word in its header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from atelier.adapters.core.family import FAMILIES
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.check_values import value_problem
from atelier.adapters.formats.layer_shapes import Shape
from atelier.adapters.formats.native import read_metadata, read_tensors, write_tensors
from atelier.adapters.formats.not_adapters import is_learned_word
from atelier.adapters.formats.safetensors_header import FileError, HeaderError, read_safetensors_header

FIRST, SECOND = "text_encoder", "text_encoder_2"
MOST_VECTORS = 75   # a prompt of Stable Diffusion has room for no more
_SECOND_NAMES = re.compile(r"(^|\.)(clip_g|text_encoders_1|text_encoder_2)$")
_BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..+|clip_[lg]|emb_params)")
_WIDTHS = {tuple(encoder.width for encoder in family.text_encoders): family.name for family in FAMILIES.values()}


@dataclass(frozen=True, slots=True)
class TextualInversion:
    """One word and its vectors."""

    token: str                     # what stands for it in prompts
    family: str                    # of the base models whose text encoders it fits
    vectors: Mapping[str, Tensor]  # text encoder → [count, width]

    @property
    def count(self) -> int:
        """How many tokens of the prompt it takes."""
        return max(len(value) for value in self.vectors.values())


def is_textual_inversion(path: Path) -> bool:
    """Whether every tensor of a file is a word's, told from its header; no file that can't be read is one."""
    try:
        entries = read_safetensors_header(path).tensors
    except (OSError, HeaderError):
        return False
    shapes: dict[str, Shape] = {key: entry.shape for key, entry in entries.items()}
    return bool(shapes) and all(is_learned_word(key, shape) or key in (FIRST, SECOND) for key, shape in shapes.items())


def read_textual_inversions(path: Path) -> list[TextualInversion]:
    """The words of a file: of a textual inversion, or of an adapter that holds some beside its layers.

    Raises:
        FileError: a word's vectors fit no text encoder of Stable Diffusion, or hold something else than numbers.
    """
    tensors = {key: value for key, value in read_tensors(path).items()
               if is_learned_word(key, tuple(value.shape)) or key in (FIRST, SECOND)}   # fmt: skip
    if problem := value_problem(tensors):
        raise FileError(f"{path.name} is damaged: {problem}. Download or copy it again.")
    own = AdapterInfo.from_metadata(read_metadata(path)).trigger
    words: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        words.setdefault(_token(key) or own or path.stem, {})[_encoder(key)] = _rows(path, key, value)
    return [TextualInversion(token, _family(path, token, vectors), vectors) for token, vectors in words.items()]


def save_textual_inversion(path: Path, word: TextualInversion, name: str, created: str) -> None:
    """Write one word in Atelier's own form; its header names the word and the family."""
    info = AdapterInfo(name=name, trigger=word.token, family=word.family, created=created)
    write_tensors(path, {part: value.contiguous() for part, value in word.vectors.items()}, info.to_metadata())


def _token(key: str) -> str:
    """The word that a tensor's name says; empty where the file's own name is the word, as in A1111."""
    if found := _BUNDLED.fullmatch(key):
        return found[1]
    return key if key.startswith("<") else ""


def _encoder(key: str) -> str:
    return SECOND if _SECOND_NAMES.search(key) else FIRST


def _rows(path: Path, key: str, value: Tensor) -> Tensor:
    """Vectors as ``[count, width]``."""
    rows = value.reshape(-1, value.shape[-1])
    if value.dim() == 3 and value.shape[0] > 1:
        raise FileError(f"{path.name} has other vectors for every layer of the UNet (XTI), which Atelier can't use. "
                        "Look for a plain textual inversion.")
    if not 1 <= len(rows) <= MOST_VECTORS:
        raise FileError(f"{path.name} can't be used: {key} has {len(rows)} vectors, but a prompt has room for "
                        f"{MOST_VECTORS} tokens.")
    return rows.float()


def _family(path: Path, token: str, vectors: Mapping[str, Tensor]) -> str:
    widths = tuple(vectors[part].shape[1] for part in (FIRST, SECOND) if part in vectors)
    if widths not in _WIDTHS:
        raise FileError(f"{path.name} can't be used: the vectors of {token} have the width "
                        f"{' and '.join(map(str, widths))}, which fits the text encoders of no base model here.")
    return _WIDTHS[widths]
