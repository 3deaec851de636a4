"""The families' records, held against the configurations of the models and what other tools write."""

from __future__ import annotations

import json

import pytest

from atelier.adapters.core.family import FAMILIES, SD1, SD2, SDXL, Family, family_title
from atelier.adapters.formats.foreign_metadata import find_family
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.base_models.single_file import MODELS


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_widths_and_encoders_are_those_of_the_models(family: Family):
    folder = MODELS / family.name if family.single_file else EMBEDDED_FOLDER
    index = json.loads((folder / "model_index.json").read_text())
    unet = json.loads((folder / "unet" / "config.json").read_text())
    assert {name for name in index if name.startswith("text_encoder")} == {e.component for e in family.text_encoders}
    assert {name for name in index if name.startswith("tokenizer")} == {e.tokenizer for e in family.text_encoders}
    widths = [json.loads((folder / e.component / "config.json").read_text())["hidden_size"]
              for e in family.text_encoders]   # fmt: skip
    assert widths == [e.width for e in family.text_encoders]
    assert sum(widths) == family.text_width == unet["cross_attention_dim"]
    assert family.conv_projections is not unet.get("use_linear_projection", False)
    assert family.two_text_encoders is (unet.get("addition_embed_type") == "text_time")


def test_only_one_family_has_each_name_and_width():
    assert len({family.text_width for family in FAMILIES.values()}) == len(FAMILIES)
    assert len({family.title for family in FAMILIES.values()}) == len(FAMILIES)
    assert all(name == family.name for name, family in FAMILIES.items())


@pytest.mark.parametrize(("metadata", "family"), [
    ({"ss_base_model_version": "sd_v1"}, SD1),
    ({"ss_base_model_version": "sd_v2_768_v"}, SD2),
    ({"ss_base_model_version": "sdxl_base_v0-9"}, SDXL),
    ({"modelspec.architecture": "stable-diffusion-v1/lora"}, SD1),
    ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, SD2),
    ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, SDXL),
    *(({"ss_base_model_version": family.kohya_version}, family) for family in FAMILIES.values()),
    *(({"modelspec.architecture": f"{family.architecture}/lora"}, family) for family in FAMILIES.values()),
])   # fmt: skip
def test_what_tools_write_names_the_family(metadata: dict[str, str], family: Family):
    assert find_family(metadata) == family.name


def test_an_unknown_family_has_no_title():
    assert family_title("flux") == "" and family_title("sdxl") == "Stable Diffusion XL"
