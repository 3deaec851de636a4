"""The tokenizers of a base model without its weights, so that captions can be measured before anything is loaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from atelier.adapters.core.family import FAMILIES
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.single_file import clip_tokenizer


def load_tokenizers(info: BaseInfo) -> tuple[Any, ...]:
    """One tokenizer (transformers CLIPTokenizer) for each text encoder of a base model; none where they are not here
    yet, or can't be read."""
    return _load(info.folder, info.family, info.file is not None)


@lru_cache(maxsize=8)
def _load(folder: Path, family: str, is_single_file: bool) -> tuple[Any, ...]:
    encoders = FAMILIES[family].text_encoders
    if is_single_file:
        return tuple(clip_tokenizer(encoder.pad_token) for encoder in encoders)
    from transformers import CLIPTokenizer

    try:
        return tuple(CLIPTokenizer.from_pretrained(folder / encoder.tokenizer, local_files_only=True)
                     for encoder in encoders)   # fmt: skip
    except (OSError, ValueError, TypeError):   # loading the model will say what is wrong
        return ()
