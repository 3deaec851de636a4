"""Foreign base models whose configurations ask for more than a model: refused by name before a library reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from families import write_configurations

from atelier.training.base_models import base_model
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import load
from atelier.training.base_models.check_config import _CLASSES, check_configurations
from atelier.training.base_models.identify import EMBEDDED_FOLDER, identify

DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("text_encoder", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ("text_encoder", {"text_config": {"deep": [{"auto_map": {"AutoModel": "a/b--evil.Model"}}]}}, "auto_map"),
    ("text_encoder", {"_attn_implementation_internal": "evil/kernel"}, "_attn_implementation_internal"),
    ("text_encoder", {"_attn_implementation_internal": "eager"}, "_attn_implementation_internal"),
    ("text_encoder", {"_attn_implementation": "evil/kernel:run"}, "attention 'evil/kernel:run'"),
    ("text_encoder", {"attn_implementation": {"": "evil/kernel"}}, "attention"),
    ("text_encoder", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("text_encoder", {"compression_config": {}}, "compression_config"),
    ("text_encoder", {"architectures": ["LlamaForCausalLM"]}, "class 'LlamaForCausalLM'"),
    ("text_encoder", {"architectures": "EvilModel"}, "class 'EvilModel'"),
    ("text_encoder", {"num_hidden_layers": 10**9}, "1000000000 for 'num_hidden_layers'"),
    ("text_encoder", {"vocab_size": 10**9}, "1000000000 for 'vocab_size'"),
    ("unet", {"_class_name": "EvilModel"}, "class 'EvilModel'"),
    ("unet", {"_class_name": ["os", "system"]}, "class \\['os', 'system'\\]"),
    ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    ("unet", {"layers_per_block": 10**6}, "1000000 for 'layers_per_block'"),
    ("unet", {"block_out_channels": [64, 10**7]}, "10000000 for 'block_out_channels'"),
    ("unet", {"block_out_channels": [64] * 20_000}, "20,000 entries"),
    ("unet", {"trust_remote_code": True}, "trust_remote_code"),
    ("vae", {"_class_name": "AutoencoderTiny"}, "class 'AutoencoderTiny'"),
    ("vae", {"sample_size": -(10**12)}, "-1000000000000 for 'sample_size'"),
    ("scheduler", {"_class_name": "evil.Scheduler"}, "class 'evil.Scheduler'"),
    ("scheduler", {"_class_name": "AutoencoderKL"}, "class 'AutoencoderKL'"),
    ("tokenizer", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "auto_map"),
    ("tokenizer", {"tokenizer_class": "EvilTokenizer"}, "class 'EvilTokenizer'"),
]


@pytest.mark.parametrize(("part", "values", "why"), HOSTILE, ids=[f"{part}-{why}" for part, _, why in HOSTILE])
def test_a_configuration_that_asks_for_more_is_refused(variant, monkeypatch, part, values, why) -> None:
    monkeypatch.setattr(base_model, "_folder_parts", lambda *_: pytest.fail("was loaded"))
    folder = variant(**{part: values})
    for use in (identify, load):
        with pytest.raises(BaseError, match=rf"(?s)was not loaded, because its {part}/.*{why}.*Download"):
            use(str(folder))


@pytest.mark.parametrize(("name", "entry"), [
    ("unet", ["diffusers", "EvilModel"]), ("unet", ["evil_package", "UNet2DConditionModel"]), ("unet", ["unet"]),
    ("evil", ["evil_module", "Evil"]), ("vae", ["diffusers", ["AutoencoderKL"]]),
    ("scheduler", ["diffusers", "os.system"]), ("text_encoder", [{"a": 1}, "CLIPTextModel"]),
])   # fmt: skip
def test_a_foreign_class_in_the_index_is_refused(variant, name, entry) -> None:
    folder = variant()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {name: entry}))
    with pytest.raises(BaseError, match=rf"its model_index\.json names .* for its {name}"):
        identify(str(folder))


@pytest.mark.parametrize("key", ["custom_pipeline", "auto_map", "quantization_config"])
def test_an_index_that_brings_code_is_refused(variant, key) -> None:
    folder = variant()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {key: {"unet": "evil"}}))
    with pytest.raises(BaseError, match=key):
        identify(str(folder))


def test_another_model_in_the_place_of_a_part_is_refused(variant) -> None:
    folder = variant()
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(BaseError, match="a different model instead"):
        identify(str(folder))


@pytest.mark.parametrize("files", [{"a": "../../b.safetensors"}, {"a": "/etc/passwd"}, {"a": 1}, ["a"], {"a": ".."}])
def test_weights_from_outside_of_the_folder_are_refused(variant, files) -> None:
    folder = variant()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(BaseError, match="outside its folder"):
        identify(str(folder))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", [f'{{"a": {DEEP}}}', f'{{"a": "{"x" * 11_000_000}"}}', "7", f'{{"a": {"9" * 5000}}}'],
                         ids=["deep", "long", "number", "digits"])   # fmt: skip
def test_a_configuration_that_is_none_is_refused_in_a_sentence(variant, file, text) -> None:
    folder = variant()
    (folder / file).write_text(text)
    with pytest.raises(BaseError, match="missing or can't be read"):
        identify(str(folder))


def test_honest_configurations_pass(variant, tmp_path: Path) -> None:
    check_configurations("embedded", EMBEDDED_FOLDER)
    honest = {"quantization_config": None, "auto_map": None, "_attn_implementation_autoset": True,
              "_attn_implementation": "sdpa", "architectures": ["CLIPTextModel"]}   # fmt: skip
    check_configurations("variant", variant(text_encoder=honest, tokenizer={"model_max_length": 10**30}))
    for family in ("sd1", "sd2", "sdxl"):
        write_configurations(tmp_path / family, family)
        check_configurations(family, tmp_path / family / family)


def test_the_samplers_are_those_that_diffusers_has() -> None:
    assert [name for name in _CLASSES["scheduler"] if not hasattr(diffusers, name)] == []
