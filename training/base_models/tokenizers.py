"""The tokenizers of a base model without its weights, so that captions can be measured before anything is loaded."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from atelier.adapters.core.family import FAMILIES
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.base_models.single_file import clip_tokenizer


@lru_cache(maxsize=8)
def load_tokenizers(base: str) -> tuple[Any, ...]:
    """One tokenizer (transformers CLIPTokenizer) for each text encoder of a base model.

    Raises:
        BaseError: see :func:`identify`; also when the tokenizer's files are missing or damaged.
    """
    info = identify(base)
    encoders = FAMILIES[info.family].text_encoders
    if info.file is not None:
        return tuple(clip_tokenizer(encoder.pad_token) for encoder in encoders)
    from transformers import CLIPTokenizer

    try:
        return tuple(CLIPTokenizer.from_pretrained(info.folder / encoder.tokenizer, local_files_only=True)
                     for encoder in encoders)   # fmt: skip
    except (OSError, ValueError, TypeError) as error:
        raise BaseError(f"{base} has a tokenizer that can't be read: {str(error).splitlines()[0]}") from error
