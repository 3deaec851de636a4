"""Names of modules in every tool's spelling, over all modules of the true models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from atelier.adapters.formats.group_layers import split_key
from atelier.adapters.formats.module_names import (
    from_original,
    from_underscores,
    parse_module_name,
    position_names,
    to_original,
    to_underscores,
)

MODELS = Path(__file__).parents[3] / "assets" / "models"
ATTENDED = {"sd1": {1, 2, 3}, "sd2": {1, 2, 3}, "sdxl": {0, 1}}


def weighted(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if "weight" in module._parameters]


@pytest.fixture(scope="module", params=ATTENDED)
def unet(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    config = json.loads((MODELS / request.param / "unet" / "config.json").read_text())
    with torch.device("meta"):
        return request.param, weighted(UNet2DConditionModel.from_config(config))


def test_every_module_has_one_underscored_name_and_back(unet: tuple[str, list[str]]):
    _, names = unet
    assert len(names) > 250
    spelled = [to_underscores(name) for name in names]
    assert len(set(spelled)) == len(names)
    assert [from_underscores(text) for text in spelled] == names
    assert [parse_module_name(f"lora_unet_{text}") for text in spelled] == [f"unet.{name}" for name in names]


def test_every_module_has_one_original_name_and_back(unet: tuple[str, list[str]]):
    family, names = unet
    originals = [to_original(name, ATTENDED[family]) for name in names]
    assert len(set(originals)) == len(names)
    assert [from_original(name) for name in originals] == names
    for prefix, text in (("diffusion_model.", ".".join), ("lora_unet_", "_".join)):
        read = [parse_module_name(prefix + text(name.split("."))) for name in originals]
        assert read == [f"unet.{name}" for name in names]


def test_text_encoders():
    config = CLIPTextConfig(num_hidden_layers=12, hidden_size=8, intermediate_size=8, num_attention_heads=2)
    with torch.device("meta"):
        names = weighted(CLIPTextModelWithProjection(config))
    inner = [name if name.startswith("text_") else f"text_model.{name}" for name in names]
    for prefix, component in (("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"),
                              ("lora_te2_", "text_encoder_2")):   # fmt: skip
        read = [parse_module_name(prefix + name.replace(".", "_")) for name in inner if name.startswith("text_model")]
        assert read == [f"{component}.{name}" for name in inner if name.startswith("text_model")]


LAYER = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0"
TEXT = "text_encoder.text_model.encoder.layers.3.self_attn.out_proj"
SPELLINGS = {
    "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0.lora_up.weight": (LAYER, "up"),
    "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_out_0.lora_up.weight": (LAYER, "up"),
    "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_out.0.lora_A.weight": (LAYER, "down"),
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0.lora_B.weight": (LAYER, "up"),
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0.lora.down.weight": (LAYER, "down"),
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.processor.to_out_lora.up.weight": (LAYER, "up"),
    "up_blocks.1.attentions.2.transformer_blocks.0.attn2.processor.to_out_lora.up.weight": (LAYER, "up"),
    "base_model.model.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0.lora_A.weight": (LAYER, "down"),
    "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0.lora_magnitude_vector": (LAYER, "magnitude"),
    "lycoris_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0.lokr_w1": (LAYER, "lokr_w1"),
    "lora_unet_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0_lora_up.weight": (LAYER, "up"),
    "lora_te_text_model_encoder_layers_3_self_attn_out_proj.alpha": (TEXT, "alpha"),
    "text_encoder.text_model.encoder.layers.3.self_attn.out_proj.lora_linear_layer.up.weight": (TEXT, "up"),
    "text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.up.weight": (TEXT, "up"),
    "text_encoder.encoder.layers.3.self_attn.out_proj.lora_A.weight": (TEXT, "down"),
    "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.out_proj.lora_up.weight": (TEXT, "up"),
}


@pytest.mark.parametrize("key", SPELLINGS)
def test_every_tool_s_spelling(key: str):
    assert split_key(key) == SPELLINGS[key]


@pytest.mark.parametrize("key", [
    "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", "lora_unet_.lora_up.weight", "unet.layer.lora_up.weight",
    "lora_te_down_blocks_0_resnets_0_conv1.alpha", "unet.text_model.encoder.layers.0.mlp.fc1.alpha", "alpha", "",
])   # fmt: skip
def test_what_is_no_module_has_no_name(key: str):
    assert split_key(key) is None


@given(st.text(alphabet="abcdelnotuw_.0123", max_size=60))
def test_any_text_is_read_without_complaint(text: str):
    split_key(text)
    parse_module_name(f"lora_unet_{text}")


def test_numbered_layers_are_as_many_as_the_first_files_had():
    names = [*position_names("unet", 144), *position_names("text_encoder", 48)]
    assert len(set(names)) == 192
    with pytest.raises(KeyError):
        position_names("unet", 143)
