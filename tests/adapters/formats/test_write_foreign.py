"""Export: other tools' files, checked with their own loader and with rules written down here a second time."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from families import configuration, small
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats import export as export_module
from atelier.adapters.formats.export import export, export_mix
from atelier.adapters.formats.low_rank import Pair
from atelier.adapters.formats.native import load_adapter, read_metadata, save_adapter
from atelier.adapters.formats.write_foreign import ConvertError, check_kohya, to_diffusers, to_kohya
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.adapters.kinds.lora import Lora, LoraSettings
from atelier.training.base_models.weights import weight_lookup

BASE = Path(__file__).parents[3] / "assets" / "base"
METADATA = {"atelier.name": "fox", "atelier.trigger": "zwx", "atelier.family": "embedded"}
ATTN2 = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.down_blocks.1.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
SMALL = (Spec(ATTN2, (12, 20)), Spec(CONV, (14, 6, 3, 3)), Spec(TEXT, (9, 9)))


def trained(specs: Sequence[Spec], *, rank: int = 4, alpha: float = 3.0, size: float = 0.05) -> AdapterSet:
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": rank, "alpha": alpha}, specs)
    for name, parameter in adapters.named_parameters():
        if name.endswith("up"):
            nn.init.normal_(parameter, std=size)
    return adapters


def pairs(adapters: AdapterSet) -> dict[Spec, Pair]:
    return {adapter.spec: pair for adapter in adapters if (pair := adapter.factors()) is not None}


@pytest.fixture
def native(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "fox.safetensors", trained(SMALL), METADATA)
    return tmp_path / "fox.safetensors"


# What diffusers draws with our files


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def models(pipeline: StableDiffusionPipeline) -> Iterator[dict[str, nn.Module]]:
    yield {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    pipeline.unload_lora_weights()


@torch.no_grad()
def outputs(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    config = pipeline.unet.config
    latents = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    words = pipeline.tokenizer(["a red fox", "two trees"], padding="max_length", return_tensors="pt").input_ids
    features = pipeline.text_encoder(words).last_hidden_state
    noise = pipeline.unet(latents, torch.tensor([700, 30]), features).sample
    drawn: Any = pipeline("a red fox", num_inference_steps=2, output_type="pt", return_dict=False,
                          generator=torch.Generator().manual_seed(3))
    picture = drawn[0]
    return {"features": features, "noise": noise, "picture": picture}


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"), [("kohya", "fp32", 1e-4), ("diffusers", "fp32", 1e-4), ("kohya", "fp16", 5e-3)]
)
def test_diffusers_gives_what_our_mount_gives(pipeline, models, tmp_path, form: str, dtype: str, tolerance: float):
    adapters = trained(find_targets(models, "all"))
    save_adapter(tmp_path / "fox.safetensors", adapters, METADATA)
    base = outputs(pipeline)
    with mount(models, Mix(((adapters, 1.0),))):
        ours = outputs(pipeline)
    with mount(models, Mix(((adapters, 0.5),))):
        half = outputs(pipeline)
    export(tmp_path / "fox.safetensors", tmp_path / "out.safetensors", form, dtype)
    pipeline.load_lora_weights(tmp_path / "out.safetensors", adapter_name="fox")

    assert all((ours[name] - base[name]).abs().max() > 0.05 for name in base), "the adapter must matter"
    assert largest_difference(outputs(pipeline), ours) <= tolerance
    pipeline.set_adapters("fox", 0.5)
    assert largest_difference(outputs(pipeline), half) <= tolerance


def test_diffusers_reads_dora_as_it_is(pipeline, models, tmp_path: Path):
    torch.manual_seed(0)
    adapters = create_adapters("dora", {"rank": 2}, find_targets(models, "all"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_adapter(tmp_path / "fox.safetensors", adapters, METADATA)
    base = outputs(pipeline)
    with mount(models, Mix(((adapters, 1.0),))):
        ours = outputs(pipeline)
    report = export_mix([(tmp_path / "fox.safetensors", 1.0)], tmp_path / "out.safetensors", "diffusers",
                        weight_of=weight_lookup("embedded"))   # fmt: skip
    pipeline.load_lora_weights(tmp_path / "out.safetensors", adapter_name="fox")
    assert report.exact and report.rank == 2 and report.loads["diffusers"].answer == "yes"
    assert all((ours[name] - base[name]).abs().max() > 0.05 for name in base), "the adapter must matter"
    assert largest_difference(outputs(pipeline), ours) <= 1e-4


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_reads_a_rank_of_its_own_for_each_layer(pipeline, models, tmp_path: Path, form: str):
    """PEFT warns, and fails this test, when diffusers hands it an alpha that it can't place."""
    torch.manual_seed(0)
    specs = find_targets(models, "all")
    loras = [Lora(spec, LoraSettings(rank=1 + i % 5, alpha=2.0 + i % 3)) for i, spec in enumerate(specs)]
    for lora in loras:
        nn.init.normal_(lora.up, std=0.05)
    adapters = AdapterSet(Lora, LoraSettings(), loras)
    tensors = to_kohya(pairs(adapters), "embedded") if form == "kohya" else to_diffusers(pairs(adapters))
    save_file(tensors, tmp_path / "out.safetensors")
    with mount(models, Mix(((adapters, 1.0),))):
        ours = outputs(pipeline)
    pipeline.load_lora_weights(tmp_path / "out.safetensors")
    assert largest_difference(outputs(pipeline), ours) <= 1e-4


# The export rule, written a second time


def kohya_names_of_sd15() -> set[str]:
    """Every layer name of a Stable Diffusion 1.5 file, built from the model's plan and from nothing of ours."""
    names = set()

    def attention(block: str) -> None:
        names.update({f"{block}_proj_in", f"{block}_proj_out"})
        inner = f"{block}_transformer_blocks_0"
        names.update(f"{inner}_attn{n}_{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out_0"))
        names.update({f"{inner}_ff_net_0_proj", f"{inner}_ff_net_2"})

    def resnet(block: str, shortcut: bool) -> None:
        names.update({f"{block}_conv1", f"{block}_conv2"} | ({f"{block}_conv_shortcut"} if shortcut else set()))

    for block in range(4):
        for layer in range(2):
            resnet(f"lora_unet_down_blocks_{block}_resnets_{layer}", shortcut=block in (1, 2) and layer == 0)
            if block < 3:
                attention(f"lora_unet_down_blocks_{block}_attentions_{layer}")
        for layer in range(3):
            resnet(f"lora_unet_up_blocks_{block}_resnets_{layer}", shortcut=True)
            if block > 0:
                attention(f"lora_unet_up_blocks_{block}_attentions_{layer}")
        if block < 3:
            names.update({f"lora_unet_down_blocks_{block}_downsamplers_0_conv",
                          f"lora_unet_up_blocks_{block}_upsamplers_0_conv"})
    attention("lora_unet_mid_block_attentions_0")
    for layer in range(2):
        resnet(f"lora_unet_mid_block_resnets_{layer}", shortcut=False)
    for layer in range(12):
        block = f"lora_te_text_model_encoder_layers_{layer}"
        names.update(f"{block}_self_attn_{part}_proj" for part in ("q", "k", "v", "out"))
        names.update({f"{block}_mlp_fc1", f"{block}_mlp_fc2"})
    return names


@pytest.fixture(scope="module")
def sd15() -> dict[str, nn.Module]:
    """Stable Diffusion 1.5's two models with no memory behind their weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    return {"unet": unet, "text_encoder": text}


@pytest.fixture(scope="module")
def sd15_kohya(sd15: dict[str, nn.Module]) -> dict[str, Tensor]:
    return to_kohya(pairs(trained(find_targets(sd15, "all"), rank=1)), "sd1")


def test_names_are_those_of_stable_diffusion(sd15_kohya: dict[str, Tensor]):
    assert {key.partition(".")[0] for key in sd15_kohya} == kohya_names_of_sd15()
    assert {key.partition(".")[2] for key in sd15_kohya} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert check_kohya(sd15_kohya) == []
    assert len(sd15_kohya) == 3 * (256 + 72)


def test_diffusers_finds_every_layer_of_stable_diffusion(sd15, sd15_kohya: dict[str, Tensor]):
    """diffusers' reading of our names leads to the very modules we began with, in the right shape."""
    read: Any = StableDiffusionPipeline.lora_state_dict
    found, alphas = read(dict(sd15_kohya))
    spellings = {".processor": "", "to_out_lora": "to_out.0_lora", "text_encoder.text_model": "text_encoder"}
    layers = {}
    for key, tensor in found.items():
        for theirs, ours in spellings.items():
            key = key.replace(theirs, ours)
        key = re.sub(r"self_attn\.to_(q|k|v|out)(\.0)?_lora", r"self_attn.\1_proj_lora", key)
        match = re.fullmatch(r"(.+?)[._]lora(?:_linear_layer)?\.(up|down)\.weight", key)
        assert match, f"diffusers made {key} of it"
        layers.setdefault(match[1], {})[match[2]] = tensor
    specs = {spec.name: spec for spec in find_targets(sd15, "all")}
    assert layers.keys() == specs.keys()
    for name, parts in layers.items():
        assert (parts["up"].shape[0], *parts["down"].shape[1:]) == specs[name].shape
    assert set(alphas.values()) == {1.0}


def test_sdxl_numbers_its_text_encoders():
    small: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    plan: Any = UNet2DConditionModel   # its signature is narrower than what SDXL's own configuration says
    with torch.device("meta"):
        models = {
            "unet": plan(
                block_out_channels=(32, 64, 64), down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
                up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"), cross_attention_dim=64,
                transformer_layers_per_block=(1, 2, 3), attention_head_dim=(2, 4, 4), use_linear_projection=True,
                addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=80,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=32, **small)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=48, **small)),
        }
    adapters = trained(find_targets(models, "all"), rank=2)
    tensors = to_kohya(pairs(adapters), "sdxl")
    assert check_kohya(tensors, "sdxl") == []
    counts = {prefix: sum(key.startswith(prefix) for key in tensors) for prefix in ("lora_te1_", "lora_te2_")}
    assert counts == {"lora_te1_": 2 * 6 * 3, "lora_te2_": 2 * 6 * 3}
    assert all("_text_model_encoder_layers_" in key for key in tensors if key.startswith("lora_te"))
    down = tensors["lora_te2_text_model_encoder_layers_1_mlp_fc1.lora_down.weight"]
    assert down.shape == (2, 48)
    assert "lora_unet_middle_block_1_transformer_blocks_2_attn2_to_k.alpha" in tensors
    read: Any = StableDiffusionXLPipeline.lora_state_dict
    found, _ = read(dict(tensors), unet_config=models["unet"].config)
    assert len(found) == 2 * len(adapters)


def test_diffusers_puts_every_layer_of_sdxl_where_it_belongs():
    """Our names are those of Stability's code there; diffusers translates them back."""
    unet: Any = UNet2DConditionModel.from_config(small("unet", configuration("sdxl", "unet")))
    adapters = trained(find_targets({"unet": unet}, "all"), rank=2)
    read: Any = StableDiffusionXLPipeline.lora_state_dict
    found, alphas = read(to_kohya(pairs(adapters), "sdxl"), unet_config=unet.config)
    StableDiffusionXLPipeline.load_lora_into_unet(found, alphas, unet)
    changed = {name: module for name, module in unet.named_modules() if hasattr(module, "lora_A")}
    assert changed.keys() == {spec.name.removeprefix("unet.") for spec in adapters.specs}
    for name, module in changed.items():
        adapter = adapters[f"unet.{name}"]
        expected = adapter.delta(torch.zeros(adapter.spec.shape)).detach()
        assert_close(module.get_delta_weight("default_0").detach(), expected, rtol=1e-5, atol=1e-7)


def raw(path: Path) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def read_by_hand(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file in float64, decoded from its bytes."""
    header, data = raw(path)
    tensors = {}
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            numbers = np.frombuffer(data[start:end], dtype={"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
            tensors[key] = numbers.astype(np.float64).reshape(entry["shape"])
    return tensors


def deltas(path: Path) -> dict[str, np.ndarray]:
    """ΔW of a plain kohya file as ComfyUI and A1111 compute it; fails where the file breaks the export rule."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in read_by_hand(path).items():
        match = re.fullmatch(r"(lora_(?:unet|te)_[a-z0-9_]+)\.(lora_down\.weight|lora_up\.weight|alpha)", key)
        assert match, f"{key} is not a plain kohya key"
        layers.setdefault(match[1], {})[match[2]] = tensor
    assert any(name.endswith(("attn2_to_k", "attn2_to_v")) for name in layers)
    found = {}
    for name, parts in layers.items():
        down, up, alpha = parts["lora_down.weight"], parts["lora_up.weight"], parts["alpha"]
        assert alpha.shape == ()
        assert up.shape[1] == down.shape[0]
        assert up.shape[2:] == (1,) * (down.ndim - 2)
        scale = float(alpha) / down.shape[0]
        found[name] = scale * np.tensordot(up.reshape(up.shape[:2]), down, axes=1)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-7), ("fp16", 1e-3)])
def test_rule_and_delta_by_an_independent_reading(native: Path, dtype: str, tolerance: float):
    own = {key: value.astype(np.float64) for key, value in load_file(native).items()}
    report = export(native, native.with_name("out.safetensors"), "kohya", dtype)
    found = deltas(native.with_name("out.safetensors"))
    expected_names = {
        ATTN2: "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        CONV: "lora_unet_down_blocks_1_resnets_0_conv1",
        TEXT: "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    }
    assert found.keys() == set(expected_names.values())
    errors = []
    for spec in SMALL:
        expected = (3.0 / 4) * (own[f"{spec.name}.up"] @ own[f"{spec.name}.down"]).reshape(spec.shape)
        delta = found[expected_names[spec.name]]
        assert delta.shape == spec.shape
        errors.append(np.linalg.norm(delta - expected) / np.linalg.norm(expected))
    assert max(errors) <= tolerance
    assert report.max_error == pytest.approx(max(errors), rel=1e-3)
    assert report.exact


def test_diffusers_form_has_scale_one_and_no_alpha(native: Path):
    out = native.with_name("out.safetensors")
    export(native, out, "diffusers")
    tensors = read_by_hand(out)
    own = {key: value.astype(np.float64) for key, value in load_file(native).items()}
    keys = {ATTN2: ATTN2, CONV: CONV, TEXT: "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"}
    assert set(tensors) == {f"{key}.lora_{part}.weight" for key in keys.values() for part in "AB"}
    for spec in SMALL:
        up, down = (tensors[f"{keys[spec.name]}.lora_{part}.weight"] for part in "BA")
        delta = np.tensordot(up.reshape(up.shape[:2]), down, axes=1)
        expected = (3.0 / 4) * (own[f"{spec.name}.up"] @ own[f"{spec.name}.down"]).reshape(spec.shape)
        np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-9)


LAYER = "lora_unet_down_blocks_1_resnets_0_conv1"
UP, DOWN, ALPHA = f"{LAYER}.lora_up.weight", f"{LAYER}.lora_down.weight", f"{LAYER}.alpha"
Tensors = dict[str, Tensor]


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


def without(tensors: Tensors, part: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if part not in key}


# What is done to a good file, and what the check must say about it.
BREAKS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "alpha missing": (lambda t: without(t, ALPHA), "conv1: alpha missing"),
    "up missing": (lambda t: without(t, UP), r"conv1: lora_up\.weight missing"),
    "alpha a vector": (lambda t: t | {ALPHA: torch.tensor([4.0])}, "conv1: alpha is not a single positive number"),
    "alpha zero": (lambda t: t | {ALPHA: torch.tensor(0.0)}, "conv1: alpha is not a single positive number"),
    "ranks differ": (lambda t: t | {DOWN: t[DOWN][:3]}, r"up \[14, 4, 1, 1\] does not match down \[3, 6, 3, 3\]"),
    "swapped": (lambda t: t | {UP: t[DOWN], DOWN: t[UP]}, r"conv1: up \[4, 6, 3, 3\] does not match"),
    "no kernel": (lambda t: t | {UP: t[UP].flatten(1)}, r"conv1: up \[14, 4\] does not match"),
    "not finite": (lambda t: t | {UP: t[UP] * torch.nan}, "conv1: some values are not finite"),
    "Tucker": (lambda t: t | {f"{LAYER}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "lora_mid.weight is not a plain"),
    "DoRA": (lambda t: t | {f"{LAYER}.dora_scale": torch.ones(14, 1)}, "dora_scale is not a plain LoRA"),
    "full difference": (lambda t: t | {f"{LAYER}.diff": torch.ones(14, 6, 3, 3)}, r"conv1\.diff is not a plain LoRA"),
    "embedding": (lambda t: t | {"bundle_emb.zwx.string_to_param.*": torch.ones(1, 768)}, "bundle_emb.* is not"),
    "dotted": (lambda t: renamed(t, DOWN, "unet.down_blocks.1.conv1.lora_down.weight"), "unet.d.* is not a plain LoRA"),
    "doubled prefix": (lambda t: renamed(t, "lora_unet_", "lora_unet_unet_"), "lora_unet_unet_.* is not a plain LoRA"),
    "ldm blocks": (lambda t: renamed(t, "down_blocks", "input_blocks"), "input_blocks.* is not a plain LoRA"),
    "text level": (lambda t: renamed(t, "text_model_", ""), "lora_te_encoder_layers.* is not a plain LoRA"),
    "no attn2": (lambda t: without(t, "attn2"), "no attn2_to_k or attn2_to_v layer"),
    "two families": (lambda t: t | renamed(t, "_te_", "_te2_"), "lora_te_ and lora_te1_ or lora_te2_"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_check_names_what_breaks_the_rule(name: str):
    damage, said = BREAKS[name]
    problems = check_kohya(damage(to_kohya(pairs(trained(SMALL)), "sd1")))
    assert any(re.search(said, problem) for problem in problems), problems


def test_the_check_passes_a_good_file():
    assert check_kohya(to_kohya(pairs(trained(SMALL)), "sd1")) == []


# Precision, reports and refusals


def test_sixteen_bits_hold_a_small_scale(tmp_path: Path):
    """alpha 1 at rank 128 puts up · scale where fp16 has two digits left; the error must not show it."""
    save_adapter(tmp_path / "a.safetensors", trained(SMALL, rank=128, alpha=1.0, size=1e-4), METADATA)
    report = export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", "fp16")
    assert report.max_error < 1e-3


def test_values_beyond_the_precision_are_refused():
    tensors = {"conv1.diff": torch.full((2, 2), 1e5)}
    with pytest.raises(ConvertError, match=r"conv1.* has values that fp16 can't represent. Export in fp32"):
        export_module._rounded(tensors, "fp16")
    assert torch.equal(export_module._rounded(tensors, "fp32")["conv1.diff"], tensors["conv1.diff"])


def test_an_untrained_adapter_exports(tmp_path: Path):
    save_adapter(tmp_path / "a.safetensors", create_adapters("lora", {}, SMALL), METADATA)
    report = export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", "fp16")
    assert (report.exact, report.max_error) == (True, 0.0)


@pytest.mark.parametrize(
    ("form", "dtype", "least", "most"),
    [("kohya", "fp32", 1e-9, 1e-7), ("kohya", "fp16", 1e-5, 1e-3), ("kohya", "bf16", 1e-4, 8e-3),
     ("diffusers", "bf16", 1e-4, 8e-3), ("native", "fp32", 0, 0)],
)
def test_report_tells_what_lies_on_disk(native: Path, form: str, dtype: str, least: float, most: float):
    out = native.with_name("out.safetensors")
    report = export(native, out, form, dtype)
    assert (report.form, report.layers, report.rank, report.exact) == (form, 3, 4, True)
    assert report.bytes == out.stat().st_size
    assert least <= report.max_error <= most
    assert report.hash == hashlib.sha256(raw(out)[1]).hexdigest()


@pytest.mark.parametrize("form", ["kohya", "diffusers", "native"])
@pytest.mark.parametrize("damage", ["transposed", "scaled", "one value"])
def test_report_notices_a_wrong_file(native: Path, monkeypatch, form: str, damage: str):
    """What was written is read back: a slip between the adapter and the disk shows in the report."""
    write = export_module.write_tensors

    def slip(path, tensors, metadata):
        key = next(key for key in tensors if "q_proj" in key and key.endswith(("down.weight", "A.weight", "down")))
        wrong = tensors[key].clone()
        if damage == "transposed":
            wrong = wrong.reshape(wrong.shape[::-1]).T.contiguous()
        elif damage == "scaled":
            wrong *= 1.01
        else:
            wrong[0, 0] += 0.01
        write(path, {**tensors, key: wrong}, metadata)

    monkeypatch.setattr(export_module, "write_tensors", slip)
    report = export(native, native.with_name("out.safetensors"), form)
    assert not report.exact
    assert report.max_error > 1e-3


def test_report_notices_a_layer_that_never_reached_the_file(native: Path, monkeypatch):
    write = export_module.write_tensors

    def lose(path, tensors, metadata):
        write(path, {key: value for key, value in tensors.items() if "q_proj" not in key}, metadata)

    monkeypatch.setattr(export_module, "write_tensors", lose)
    report = export(native, native.with_name("out.safetensors"), "kohya")
    assert (report.exact, report.max_error) == (False, 1.0)


def test_native_export_is_the_same_adapter(native: Path):
    out = native.with_name("out.safetensors")
    export(native, out, "native")
    ours, theirs = load_adapter(native), load_adapter(out)
    assert theirs.settings == ours.settings
    assert theirs.specs == ours.specs
    for key, tensor in ours.tensors().items():
        assert_close(theirs.tensors()[key], tensor, rtol=0, atol=0)


def test_alpha_is_exact_in_every_precision(tmp_path: Path):
    """A rank of 257 has no bfloat16; alpha keeps float32, so alpha / rank is still 1."""
    wide = [Spec(spec.name, (300, 300)) for spec in SMALL if len(spec.shape) == 2]
    save_adapter(tmp_path / "a.safetensors", trained(wide, rank=257), METADATA)
    export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", "bf16")
    assert read_metadata(tmp_path / "b.safetensors")["ss_network_alpha"] == "257.0"
    header, data = raw(tmp_path / "b.safetensors")
    alphas = [entry for key, entry in header.items() if key.endswith(".alpha")]
    assert {entry["dtype"] for entry in alphas} == {"F32"}
    assert {struct.unpack_from("<f", data, entry["data_offsets"][0]) for entry in alphas} == {(257.0,)}


@pytest.mark.parametrize(
    ("form", "dtype", "said"),
    [
        ("ckpt", "fp32", "'ckpt'.*formats are kohya, diffusers, lycoris, comfyui, diff, native"),
        ("kohya", "fp8", "'fp8'.*precisions are fp32, fp16, bf16"),
        ("native", "fp16", "always has full precision"),
    ],
)
def test_what_does_not_exist_is_refused(native: Path, form: str, dtype: str, said: str):
    with pytest.raises(ConvertError, match=said):
        export(native, native.with_name("out.safetensors"), form, dtype)
    assert not native.with_name("out.safetensors").exists()


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", ["", "flux"])
def test_an_unknown_family_is_refused(native: Path, form: str, family: str):
    save_adapter(native, trained(SMALL), {**METADATA, "atelier.family": family})
    with pytest.raises(ConvertError, match=f"family '{family}'.*embedded, sd1, sd2, sdxl"):
        export(native, native.with_name("out.safetensors"), form)


def test_a_component_the_family_lacks_is_refused():
    adapters = trained([Spec("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", (6, 5))])
    with pytest.raises(ConvertError, match="'sd1' can't hold text_encoder_2"):
        to_kohya(pairs(adapters), "sd1")


def test_an_adapter_that_tools_would_refuse_is_refused(native: Path):
    save_adapter(native, trained(SMALL[1:]), METADATA)
    with pytest.raises(ConvertError, match=r"Other tools would reject.*no attn2_to_k"):
        export(native, native.with_name("out.safetensors"), "kohya")
    assert export(native, native.with_name("out.safetensors"), "diffusers").exact


# Kinds


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.is_low_rank()])
def test_every_low_rank_kind_leaves_as_an_exact_lora(tmp_path: Path, kind: str):
    adapters = create_adapters(kind, {}, SMALL)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in adapters.buffers():
            if buffer.is_floating_point():   # what a base model fills
                nn.init.normal_(buffer)
    save_adapter(tmp_path / "a.safetensors", adapters, METADATA)
    report = export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", "fp32")
    assert report.exact
    assert report.max_error < 1e-6
    tensors = read_by_hand(tmp_path / "b.safetensors")
    layer = "lora_unet_down_blocks_1_resnets_0_conv1"
    up, down = (tensors[f"{layer}.lora_{part}.weight"] for part in ("up", "down"))
    delta = np.tensordot(up.reshape(up.shape[:2]), down, axes=1) * tensors[f"{layer}.alpha"] / len(down)
    expected = adapters[CONV].delta(torch.zeros(14, 6, 3, 3)).detach().numpy()
    np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
