"""Prompt features: a prompt encoded by the embedded base's text encoder, for a retriever to compare adapters with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.training.base_models.identify import EMBEDDED_FOLDER


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Tokenizer and frozen text encoder, without the rest of the base model."""

    tokenizer: Any
    encoder: Any

    @classmethod
    def load(cls, folder: Path = EMBEDDED_FOLDER) -> PromptEncoder:
        """Read both from a diffusers folder, in float32."""
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return cls(tokenizer, encoder.eval().requires_grad_(False))

    @property
    def width(self) -> int:
        """Of the text features."""
        return self.encoder.config.hidden_size

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts → text features ``[B, T, D]`` and a mask ``[B, T]`` of the tokens that count: words, first end."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length,
                                return_tensors="pt").input_ids   # fmt: skip
        ends = (tokens == self.tokenizer.eos_token_id).cumsum(1)
        mask = (ends == 0) | ((ends == 1) & (tokens == self.tokenizer.eos_token_id))
        mask[:, 0] = False   # the start token is the same in every text
        return self.encoder(tokens)[0], mask
