"""A small caption model of true topology with random weights, saved by the library that everybody's are saved by."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

WORDS = ("[PAD]", "[CLS]", "[SEP]", *(f"word{i}" for i in range(29)))
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save_tiny_caption_model(folder: Path, kind: str) -> Path:
    """Save a model of a kind into a folder; returns the folder."""
    torch.manual_seed(0)
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "blip":
        text = {**SMALL, **marks, "vocab_size": 32, "sep_token_id": 2, "encoder_hidden_size": 16, "is_decoder": True}
        config = BlipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 16})
        model = BlipForConditionalGeneration(config)
    else:
        vision = ViTConfig(**SMALL, image_size=32, patch_size=16)
        text = GPT2Config(vocab_size=32, n_positions=64, n_embd=16, n_layer=1, n_head=2, add_cross_attention=True,
                          **marks)   # fmt: skip
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        model = VisionEncoderDecoderModel(config=config)
        model.generation_config.update(decoder_start_token_id=1, **marks)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    marks = {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder
