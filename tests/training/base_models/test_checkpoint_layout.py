"""Checkpoints as people have them, told from their headers: each is known for what it is or refused with a cure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import CONV_IN, UNET, VAE, Shapes, shapes, write_hollow
from families import expected_tensors

from atelier.training.base_models.base_info import BaseError, BaseInfo
from atelier.training.base_models.identify import identify
from atelier.training.base_models.single_file import MODELS
from atelier.training.config.base_options import BaseOptions

TEXT = {"sd1": "cond_stage_model.", "sd2": "cond_stage_model.", "sdxl": "conditioner."}


def without(*prefixes: str) -> Callable[[Shapes], Shapes]:
    return lambda whole: {name: shape for name, shape in whole.items() if not name.startswith(prefixes)}


def only(prefix: str, new: str = "") -> Callable[[Shapes], Shapes]:
    return lambda whole: {new + name.removeprefix(prefix): shape for name, shape in whole.items()
                          if name.startswith(prefix)}   # fmt: skip


def also(**extra: tuple[int, ...]) -> Callable[[Shapes], Shapes]:
    return lambda whole: {**whole, **{name.replace("__", "."): shape for name, shape in extra.items()}}


def inputs(channels: int) -> Callable[[Shapes], Shapes]:
    return lambda whole: {**whole, CONV_IN: (320, channels, 3, 3)}


def with_ema(whole: Shapes) -> Shapes:
    ema = {"model_ema." + name[len("model.") :].replace(".", ""): shape for name, shape in whole.items()
           if name.startswith(UNET)}   # fmt: skip
    return {**whole, **ema, "model_ema.decay": (), "model_ema.num_updates": ()}


def ssd_1b(whole: Shapes) -> Shapes:
    gone = (UNET + "middle_block.1.", UNET + "middle_block.2.")
    return {name: shape for name, shape in whole.items()
            if not name.startswith(gone) and ".transformer_blocks.9." not in name}   # fmt: skip


def refiner(whole: Shapes) -> Shapes:
    rest = without("conditioner.embedders.0")(whole)
    return {name.replace("embedders.1", "embedders.0"): (shape[0], 1280) if "attn2.to_k" in name else shape
            for name, shape in rest.items()}   # fmt: skip


def short_names(whole: Shapes) -> Shapes:
    return {name.replace("transformer.text_model.", "transformer."): shape for name, shape in whole.items()}


def reshaped(part: str, shape: tuple[int, ...]) -> Callable[[Shapes], Shapes]:
    return lambda whole: {**whole, part: shape}


NOTHING = without("nothing has this name")
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.mark.parametrize(("family", "change"), [
    ("sd1", NOTHING), ("sd2", NOTHING), ("sdxl", NOTHING), ("sd1", with_ema), ("sdxl", with_ema),
    ("sd1", short_names), ("sdxl", short_names),
    ("sd1", also(alphas_cumprod=(1000,), betas=(1000,), **{POSITIONS.replace(".", "__"): (1, 77)})),
    ("sd2", also(cond_stage_model__model__logit_scale=(), cond_stage_model__model__text_projection=(1024, 1024))),
    ("sd1", reshaped(f"{VAE}encoder.mid.attn_1.q.weight", (512, 512))),   # a linear layer in place of a 1×1 convolution
])   # fmt: skip
def test_whole_checkpoints_are_known(tmp_path: Path, family: str, change: Callable[[Shapes], Shapes]):
    info = identify(str(write_hollow(tmp_path / "model.safetensors", change(shapes(family)))))
    assert (info.family, info.precision, info.few_steps) == (family, "fp16", None)
    assert info.resolution == {"sd1": 512, "sd2": 768, "sdxl": 1024}[family]


@pytest.mark.parametrize(("dtype", "precision"), [
    ("F64", "fp64"), ("F32", "fp32"), ("BF16", "bf16"), ("F8_E4M3", "fp8"), ("F8_E5M2", "fp8")])
def test_every_floating_precision_is_known(tmp_path: Path, dtype: str, precision: str):
    assert identify(str(write_hollow(tmp_path / "a.safetensors", shapes("sd1"), dtype))).precision == precision


def test_the_unet_s_precision_counts_in_a_mixed_file(tmp_path: Path):
    parts = {name: "F32" for name in shapes("sdxl") if not name.startswith(UNET)}
    assert identify(str(write_hollow(tmp_path / "a.safetensors", shapes("sdxl"), dtypes=parts))).precision == "fp16"


@pytest.mark.parametrize(("family", "change", "words"), [
    ("sd1", inputs(9), "inpainting"), ("sdxl", inputs(9), "inpainting"), ("sd1", inputs(8), "InstructPix2Pix"),
    ("sd2", inputs(5), "depth"), ("sd2", inputs(7), "upscaler"), ("sd1", inputs(16), "another task"),
    ("sd1", without(VAE), "--vae"), ("sdxl", without(VAE), "--vae"),
    ("sd1", without(TEXT["sd1"]), "no text encoder"), ("sd2", without(TEXT["sd2"]), "no text encoder"),
    ("sdxl", without(TEXT["sdxl"]), "no text encoder"), ("sdxl", without("conditioner.embedders.1"), "no text encoder"),
    ("sd1", only(UNET, UNET), "no VAE"), ("sdxl", only(UNET, UNET), "no VAE"),
    ("sd1", only(UNET), "Save Checkpoint"), ("sdxl", only(UNET), "Save Checkpoint"),
    ("sdxl", only(VAE), "only a VAE"), ("sdxl", only(VAE, VAE), "only a VAE"),
    ("sd1", only("cond_stage_model.transformer."), "only a text encoder"),
    ("sdxl", only("conditioner.embedders.1.model."), "only a text encoder"),
    ("sdxl", refiner, "refiner"),
    ("sdxl", ssd_1b, "SSD-1B"), ("sd1", without(UNET + "middle_block.1."), "smaller model"),
    ("sd1", without(UNET + "output_blocks.11"), "smaller model"),
    ("sd1", without(f"{VAE}encoder."), "weights of its VAE"),
    ("sdxl", without(f"{VAE}quant_conv"), "weights of its VAE"),
    ("sd1", without("cond_stage_model.transformer.text_model.encoder.layers.11"), "weights of its text encoder"),
    ("sd1", reshaped(f"{UNET}out.2.weight", (8, 320, 3, 3)), "different architecture"),
    ("sd1", reshaped(f"{VAE}decoder.conv_in.weight", (512, 16, 3, 3)), "different architecture"),
    ("sd1", also(model__diffusion_model__time_embed__cond_proj__weight=(320, 256)), "LCM"),
    ("sdxl", also(model__diffusion_model__time_embed__cond_proj__weight=(320, 256)), "LCM"),
    ("sdxl", also(edm_mean=(4,), edm_std=(4,)), "EDM"),
    ("sdxl", also(**{"edm_vpred__sigma_max": (), "edm_vpred__sigma_min": ()}), "CosXL"),
    ("sd1", also(scaled_fp8=(0,)), "quantized"),
    ("sdxl", also(model__diffusion_model__out__2__scale_weight=()), "quantized"),
    ("sd1", also(model__diffusion_model__out__2__weight__absmax=(4,)), "quantized"),
])   # fmt: skip
def test_others_are_refused_with_the_cure(
    tmp_path: Path, family: str, change: Callable[[Shapes], Shapes], words: str
):
    message = refusal(write_hollow(tmp_path / "model.safetensors", change(shapes(family))))
    assert words in message


def refusal(path: Path) -> str:
    """One line that names the model and says what to do."""
    with pytest.raises(BaseError) as caught:
        identify(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert any(cure in message for cure in ("Use ", "Download ", "Choose ", "Import ", "works with", "Rename"))
    return message


@pytest.mark.parametrize("dtype", ["I8", "U8", "I32", "F4", "F8_E8M0"])
def test_weights_that_are_no_numbers_to_compute_with_are_refused(tmp_path: Path, dtype: str):
    name = f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    path = write_hollow(tmp_path / "a.safetensors", shapes("sd1"), dtypes={name: dtype})
    assert f"number format {dtype}" in refusal(path)


@pytest.mark.parametrize(("names", "words"), [
    (["joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
    (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
    (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX"),
    (["model.diffusion_model.layers.0.attention.qkv.weight"], "diffusion transformer"),
    (["transformer_blocks.0.attn.to_q.weight"], "diffusion transformer"),
    (["clip_txt_mapper.weight"], "Stable Cascade"),
    (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x", "up_blocks.0.x"], "ControlNet"),
    (["down_blocks.0.motion_modules.0.x", "up_blocks.0.motion_modules.0.x"], "AnimateDiff"),
    (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "IP-Adapter"),
    (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "LoRA"),
    (["lora_unet_mid_block_x.hada_w1_a"], "adapter"), (["lycoris_x.lokr_w1"], "LoKr"),
    (["base_model.model.unet.mid_block.to_q.lora_A.weight"], "adapter"),
    (["clip_g", "clip_l"], "textual inversion"), (["emb_params"], "textual inversion"),
    (["encoder.down_blocks.0.x", "decoder.up_blocks.0.x"], "part of a diffusers model"),
    (["encoder.layers.0.weight", "decoder.layers.0.weight"], "TAESD"),
    (["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
    (["model.0.RRDB.0.weight"], "upscaler"), (["something.else"], "no Stable Diffusion model"),
])   # fmt: skip
def test_files_of_other_kinds_are_named(tmp_path: Path, names: list[str], words: str):
    with pytest.raises(BaseError, match=words):
        identify(str(write_hollow(tmp_path / "other.safetensors", dict.fromkeys(names, (4, 4)))))


@pytest.mark.parametrize(("content", "words"), [
    (b"GGUF\x03\0\0\0" + bytes(80), "GGUF"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
    (b"PK\x03\x04" + bytes(80), "pickle"), (b"\x80\x02" + bytes(80), "pickle"), (b"<!doctype html><html>", "web page"),
    (b'{"error": "sign in"}', "JSON"), (b"", "empty"),
])   # fmt: skip
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "pt", "bin", "gguf", "pth"])
def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes, words: str, suffix: str):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(BaseError, match=words):
        identify(str(path))


def test_a_truncated_checkpoint_is_refused(tmp_path: Path):
    path = write_hollow(tmp_path / "model.safetensors", shapes("sd1"))
    os.truncate(path, path.stat().st_size - 100_000)
    assert "100,000 of" in refusal(path)


def test_a_link_is_followed_and_a_broken_one_said(tmp_path: Path):
    path = write_hollow(tmp_path / "blob", shapes("sd1"))
    link = tmp_path / "model.safetensors"
    link.symlink_to(path)
    assert identify(str(link)).family == "sd1"
    path.unlink()
    assert "is a link to" in refusal(link)


def prediction(info: BaseInfo) -> tuple[str, bool, bool]:
    return info.prediction_type, info.zero_snr, bool(info.assumed)


@pytest.mark.parametrize(("family", "name", "metadata", "marks", "expected"), [
    ("sdxl", "noob", {}, ("v_pred", "ztsnr"), ("v_prediction", True, False)),
    ("sdxl", "noob", {}, ("v_pred",), ("v_prediction", False, False)),
    ("sdxl", "noobaiXLNAIXL_vPred10Version", {}, (), ("v_prediction", False, True)),
    ("sdxl", "my-v-pred-mix", {}, (), ("v_prediction", False, True)),
    ("sd1", "fluffyrock-vpred-e20", {}, (), ("v_prediction", False, True)),
    ("sdxl", "noobVPredMix", {}, (), ("v_prediction", False, True)),
    ("sdxl", "vpredator", {}, (), ("epsilon", False, False)),
    ("sd1", "a", {"modelspec.prediction_type": "v"}, (), ("v_prediction", False, False)),
    ("sdxl", "x_vpred", {"modelspec.prediction_type": "epsilon"}, (), ("epsilon", False, False)),
    ("sd1", "a", {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, (), ("v_prediction", True, False)),
    ("sd2", "my-finetune", {}, (), ("v_prediction", False, True)),
    ("sd2", "v2-1_768-ema-pruned", {}, (), ("v_prediction", False, False)),
    ("sd2", "v2-1_512-ema-pruned", {}, (), ("epsilon", False, False)),
])   # fmt: skip
def test_what_a_model_predicts_is_read_or_assumed_aloud(
    tmp_path: Path, family: str, name: str, metadata: dict[str, str], marks: tuple[str, ...],
    expected: tuple[str, bool, bool],
):   # fmt: skip
    tensors = {**shapes(family), **dict.fromkeys(marks, (0,))}
    path = write_hollow(tmp_path / f"{name}.safetensors", tensors, metadata=metadata)
    assert prediction(identify(str(path))) == expected
    for chosen in ("epsilon", "v_prediction", "sample"):   # by hand, whatever the file says
        assert identify(str(path), BaseOptions(chosen)).prediction_type == chosen


@pytest.mark.parametrize(("name", "metadata", "method", "steps"), [
    ("sd_xl_turbo_1.0_fp16", {}, "Turbo", 4), ("sdxl_lightning_8step", {}, "Lightning", 8),
    ("a", {"modelspec.architecture": "stable-diffusion-xl-v1-turbo"}, "Turbo", 4),
    ("dreamshaperXL_v21TurboDPMSDE", {}, "Turbo", 4), ("realvisxlV40_v40LightningBakedvae", {}, "Lightning", 4),
    ("epicrealism_HyperVAE", {}, "Hyper", 8), ("Hyper-SDXL-1step", {}, "Hyper", 1), ("photonLCM_v10", {}, "LCM", 8),
    ("dmd2_sdxl_4step", {}, "DMD", 4),
])   # fmt: skip
def test_distilled_models_bring_their_steps(
    tmp_path: Path, name: str, metadata: dict[str, str], method: str, steps: int
):
    few = identify(str(write_hollow(tmp_path / f"{name}.safetensors", shapes("sdxl"), metadata=metadata))).few_steps
    assert few is not None
    assert (few.method, few.steps) == (method, steps)
    assert few.guidance <= 1.5


@pytest.mark.parametrize("name", ["hyperrealism_v3", "HyperRealistic", "calcmodel", "hyperion", "juggernautXL_v9"])
def test_other_names_are_no_distilled_models(tmp_path: Path, name: str):
    assert identify(str(write_hollow(tmp_path / f"{name}.safetensors", shapes("sdxl")))).few_steps is None


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_shipped_lists_are_those_of_the_true_models(family: str):
    assert {name: list(shape) for name, shape in shapes(family).items()} == expected_tensors(MODELS / family, family)
