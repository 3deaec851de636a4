"""Captions that a local model proposes: BLIP or a vision encoder with a text decoder, read from one folder.

Nothing is downloaded, no code that lies in the folder runs, and no pickle is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.core.parse import parse_json

KINDS = ("blip", "vision-encoder-decoder")   # as ``model_type`` names them
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)   # BLIP's own, which are CLIP's
_MOST_TOKENS = 40


class CaptionModelError(ValueError):
    """A folder that has no model which can caption pictures; the message says what is missing."""


@dataclass(frozen=True)
class CaptionModel:
    """A loaded model with what it needs to read a picture and to write a caption."""

    model: Any       # transformers BlipForConditionalGeneration or VisionEncoderDecoderModel
    tokenizer: Any
    side: int        # pixels
    mean: Tensor     # of each channel
    std: Tensor

    @torch.no_grad()
    def caption(self, picture: Image.Image) -> str:
        """Propose a caption, on one line."""
        tokens = self.model.generate(pixel_values=self.pixels(picture), max_new_tokens=_MOST_TOKENS, do_sample=False)
        return " ".join(self.tokenizer.decode(tokens[0], skip_special_tokens=True).split())

    def pixels(self, picture: Image.Image) -> Tensor:
        """The picture as the model reads it ``[1, 3, side, side]``: not cropped, but squeezed to a square."""
        small = picture.convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(small, dtype=np.float32) / 255)
        return ((values - self.mean) / self.std).permute(2, 0, 1)[None]


def check_caption_model(folder: Path) -> str:
    """Check a folder without loading its weights; returns the kind of the model.

    Raises:
        CaptionModelError: it can't be used.
    """
    kind = _read(folder, "config.json").get("model_type")
    if kind not in KINDS:
        raise CaptionModelError(f"{folder} has a model of the kind “{kind}”, but only BLIP and models with a vision "
                                "encoder and a text decoder (ViT-GPT2) can caption pictures here.")   # fmt: skip
    if not any(folder.glob("*.safetensors")):
        raise CaptionModelError(f"{folder} has no weights as .safetensors. Other files could run code, so they are "
                                "never opened: download the model in that format.")   # fmt: skip
    return kind


def load_caption_model(folder: Path) -> CaptionModel:
    """Load the model of a folder on the CPU, where it is in no training's way.

    Raises:
        CaptionModelError: it can't be used.
    """
    from transformers import AutoTokenizer, BlipForConditionalGeneration, VisionEncoderDecoderModel

    is_blip = check_caption_model(folder) == "blip"
    architecture: Any = BlipForConditionalGeneration if is_blip else VisionEncoderDecoderModel
    try:
        model, info = architecture.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True)   # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:   # whatever a library raises over files that it did not expect
        raise CaptionModelError(f"The caption model in {folder} can't be read: {error}") from error
    if info["missing_keys"]:
        raise CaptionModelError(f"The caption model in {folder} lacks {len(info['missing_keys'])} of its weights. "
                                "Download it again.")   # fmt: skip
    vision = getattr(model.config, "vision_config", None) or model.config.encoder
    colours = _read(folder, "preprocessor_config.json") if (folder / "preprocessor_config.json").exists() else {}
    mean, std = (torch.tensor(colours.get(name) or default, dtype=torch.float32)
                 for name, default in (("image_mean", _MEAN), ("image_std", _STD)))   # fmt: skip
    return CaptionModel(model.eval(), tokenizer, int(vision.image_size), mean, std)


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        values = parse_json((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaptionModelError(f"{folder} has no {name} that can be read, as every model folder has.") from error
    if not isinstance(values, dict):
        raise CaptionModelError(f"{name} in {folder} is not a model's.")
    return values
