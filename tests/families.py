"""Twins of the model families: the true topology with few channels, or the true size, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.checkpoint_layout import TENSORS
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.base_models.memory_count import empty_parts
from atelier.training.base_models.original_layout import to_original
from atelier.training.base_models.single_file import MODELS, clip_tokenizer, new_scheduler

FAMILIES = ("sd1", "sd2", "sdxl")


def configuration(family: str, part: str) -> dict[str, Any]:
    return json.loads((MODELS / family / part / "config.json").read_text())


def small(part: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same topology and text widths, few channels and layers."""
    if part == "unet":
        widths = [32 * (i + 1) for i in range(len(values["block_out_channels"]))]
        heads = values["attention_head_dim"]
        layers = values.get("transformer_layers_per_block", 1)
        return {
            **values, "block_out_channels": widths, "sample_size": 8,
            "attention_head_dim": heads if isinstance(heads, int) else [2] * len(heads),
            "transformer_layers_per_block": [min(n, 2) for n in layers] if isinstance(layers, list) else layers,
        }   # fmt: skip
    if part == "vae":
        return {**values, "block_out_channels": [32, 32, 32, 32], "sample_size": 64}
    return {**values, "num_hidden_layers": 2, "intermediate_size": 64}


def write_configurations(folder: Path, family: str) -> Path:
    """A stand-in for ``assets/models`` that describes the small twin; returns the folder above the family's."""
    for path in (MODELS / family).rglob("*.json"):
        if path.name == TENSORS:
            continue
        copy = folder / path.relative_to(MODELS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        values = json.loads(path.read_text())
        copy.write_text(json.dumps(values if path.name == "model_index.json" else small(path.parent.name, values)))
    (folder / "clip_merges.txt").symlink_to(MODELS / "clip_merges.txt")
    write_expected_tensors(folder / family, family)
    return folder


def expected_tensors(folder: Path, family: str) -> dict[str, list[int]]:
    """Name → shape of every weight in the original layout, from the models that the configurations describe."""
    info = BaseInfo(source="", title="", family=family, prediction_type="epsilon", resolution=0, vae_scale_factor=8,
                    size_multiple=8, channels=0, folder=folder, caption="")   # fmt: skip
    states = {name: dict(part.named_parameters()) for name, part in empty_parts(info, torch.float32).items()}
    return {name: list(value.shape) for name, value in to_original(states, family).items()}


def write_expected_tensors(folder: Path, family: str) -> None:
    """Write the file that ``assets/models`` has for each family; run for those folders, it makes the shipped ones."""
    lines = (f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in expected_tensors(folder, family).items())
    (folder / TENSORS).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write_models(
    folder: Path, family: str, prediction: str = "epsilon", configurations: Path = MODELS,
    dtype: torch.dtype = torch.float32,
) -> tuple[Path, Path]:   # fmt: skip
    """Write one model with random weights as a diffusers folder and as a single file of the original layout."""
    torch.manual_seed(11)

    def read(part: str) -> dict[str, Any]:
        return json.loads((configurations / family / part / "config.json").read_text())

    info = BaseInfo(source="", title="", family=family, prediction_type=prediction, resolution=0, vae_scale_factor=8,
                    size_multiple=8, channels=0, folder=EMBEDDED_FOLDER, caption="")   # fmt: skip
    torch.set_default_dtype(dtype)
    try:
        unet: Any = UNet2DConditionModel.from_config(read("unet"))
        if family == "sd2" and prediction == "v_prediction" and configurations == MODELS:
            unet.register_to_config(sample_size=96)
        vae = AutoencoderKL.from_config(read("vae"))
        parts: dict[str, Any] = {"unet": unet, "vae": vae,
                                 "text_encoder": CLIPTextModel(CLIPTextConfig(**read("text_encoder")))}   # fmt: skip
        parts |= {"tokenizer": clip_tokenizer("!" if family == "sd2" else "<|endoftext|>")}
        parts |= {"scheduler": new_scheduler(info)}
        if family == "sdxl":
            second = CLIPTextModelWithProjection(CLIPTextConfig(**read("text_encoder_2")))
            parts |= {"text_encoder_2": second, "tokenizer_2": clip_tokenizer("!")}
            pipeline: Any = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            make: Any = StableDiffusionPipeline
            pipeline = make(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    finally:
        torch.set_default_dtype(torch.float32)
    pipeline.save_pretrained(folder / "folder")
    states = {name: part.state_dict() for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    tensors = {key: value.contiguous() for key, value in to_original(states, family).items()}
    save_file(tensors, folder / "single.safetensors", {"modelspec.prediction_type": prediction})
    return folder / "folder", folder / "single.safetensors"
