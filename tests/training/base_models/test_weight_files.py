"""Diffusers folders in the forms that people have: variants, shards, links, pickles; each loads whole or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.identify import identify
from atelier.training.base_models.weight_files import find_variants
from atelier.training.config.base_options import BaseOptions
from atelier.training.sampling.sample import DrawRequest, draw

Variant = Callable[..., Path]
PARTS = ("unet", "vae", "text_encoder")


def rewritten(folder: Path, variant: str, *, keep: bool = False, dtype: torch.dtype = torch.float16) -> Path:
    """The weights of every part once more, in another precision and under a variant's name."""
    for part in PARTS:
        (path,) = (folder / part).glob("*.safetensors")
        tensors = {name: value.to(dtype) for name, value in load_file(path).items()}
        if not keep:
            path.unlink()
        save_file(tensors, path.with_suffix(f".{variant}.safetensors"), {"format": "pt"})
    return folder


def same_weights(model: BaseModel, other: BaseModel, *, in_half: bool) -> None:
    for name, part in {**model.models(), "vae": model.vae}.items():
        theirs = {**other.models(), "vae": other.vae}[name].state_dict()
        for key, value in part.state_dict().items():
            expected = theirs[key].half().float() if in_half else theirs[key]
            assert torch.equal(value, expected), (name, key)


@pytest.mark.parametrize(("variant_name", "keep"), [("fp16", False), ("fp16", True), ("non_ema", False)])
def test_one_variant_is_loaded(variant: Variant, model: BaseModel, variant_name: str, keep: bool):
    folder = rewritten(variant(), variant_name, keep=keep)
    info = identify(str(folder))
    assert info.precision == ("fp32" if keep else "fp16")
    own = next((folder / "unet").glob("diffusion_pytorch_model.safetensors" if keep else "*.safetensors"))
    assert own.stat().st_size < info.bytes < 1.5 * sum(
        path.stat().st_size for part in PARTS for path in [next((folder / part).glob("*.safetensors"))])   # fmt: skip
    same_weights(load(str(folder), "cpu"), model, in_half=not keep)


def test_diffusers_reads_the_same_variant(variant: Variant):
    folder = rewritten(variant(), "fp16")
    ours = load(str(folder), "cpu").unet.state_dict()
    theirs = UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16", torch_dtype=torch.float32)
    assert all(torch.equal(ours[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("variant_name", [None, "fp16"])
def test_shards_are_loaded_and_a_missing_one_is_said(variant: Variant, model: BaseModel, variant_name: str | None):
    folder = variant()
    shutil.rmtree(folder / "unet")
    model.unet.save_pretrained(folder / "unet", max_shard_size="100KB", variant=variant_name)
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    same_weights(load(str(folder), "cpu"), model, in_half=False)
    shards[1].unlink()
    assert "others or their index are missing" in refusal(folder)


def test_shards_without_their_index_are_refused(variant: Variant, model: BaseModel):
    folder = variant()
    shutil.rmtree(folder / "unet")
    model.unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    next((folder / "unet").glob("*.index.json")).unlink()
    assert "index" in refusal(folder)


def refusal(folder: Path, options: BaseOptions | None = None) -> str:
    with pytest.raises(BaseError) as caught:
        identify(str(folder), options or BaseOptions())
    message = str(caught.value)
    assert "\n" not in message
    assert any(cure in message for cure in ("Use ", "Download ", "Choose ", "download it ", "Rename", "works with"))
    return message


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("name", "content", "words"), [
    ("pytorch_model.bin", b"PK\x03\x04", "only as a pickle"), ("model.ckpt", b"PK\x03\x04", "only as a pickle"),
    ("weights.safetensors", b"", "Rename it"), ("nothing", b"", "no weights of its"),
])   # fmt: skip
def test_a_part_without_safetensors_is_refused(variant: Variant, part: str, name: str, content: bytes, words: str):
    folder = variant()
    next((folder / part).glob("*.safetensors")).unlink()
    (folder / part / name).write_bytes(content)
    message = refusal(folder)
    assert words in message
    assert part in message


@pytest.mark.parametrize(("content", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"), (b"<html>sign in</html>", "web page"),
    (b"PK\x03\x04" + bytes(80), "pickle"), (b"", "empty"),
])   # fmt: skip
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_something_else_are_refused(variant: Variant, part: str, content: bytes, words: str):
    folder = variant()
    path = next((folder / part).glob("*.safetensors"))
    path.unlink()
    path.write_bytes(content)
    assert words in refusal(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_lacks_weights_is_refused_before_it_is_loaded(variant: Variant, part: str):
    folder = variant()
    [path] = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    path.unlink()
    save_file({name: value for name, value in tensors.items() if name != list(tensors)[3]}, path, {"format": "pt"})
    name, message = list(tensors)[3].removeprefix("text_model."), refusal(folder)
    assert f"of its {part}, such as {name}" in message and "lacks 1 of" in message
    grown = {**tensors, list(tensors)[3]: torch.zeros(3, 5)}
    save_file(grown, path, {"format": "pt"})
    assert "in the shape [3, 5]" in refusal(folder)


def test_a_shard_that_lacks_weights_is_refused(variant: Variant, model: BaseModel):
    folder = variant()
    shutil.rmtree(folder / "unet")
    model.unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[0]
    save_file(dict(list(load_file(shard).items())[1:]), shard, {"format": "pt"})
    assert "lacks 1 of" in refusal(folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_its_vocabulary_is_refused(variant: Variant, name: str):
    folder = variant()
    for each in (name, "tokenizer.json"):
        (folder / "tokenizer" / each).unlink(missing_ok=True)
    assert "prompts can't be read" in refusal(folder)


def test_the_vae_of_an_old_folder_is_whole(variant: Variant, model: BaseModel):
    """diffusers named its attention otherwise before 0.18, and still reads that."""
    folder, old = variant(), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    [path] = (folder / "vae").glob("*.safetensors")
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    assert any(".query." in name for name in tensors)
    same_weights(load(str(folder), "cpu"), model, in_half=False)


def test_a_smaller_unet_of_the_family_is_loaded(variant: Variant, model: BaseModel):
    """As SSD-1B is of Stable Diffusion XL: fewer blocks, and none in the middle."""
    folder = variant(unet={"mid_block_type": None})
    [path] = (folder / "unet").glob("*.safetensors")
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith("mid_block.")}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    smaller = load(str(folder), "cpu")
    assert smaller.unet.mid_block is None
    assert draw(smaller, DrawRequest(prompt="a fox", steps=1))[0].size == (32, 32)


def test_truncated_and_dangling_weights_are_refused(variant: Variant):
    folder = variant()
    path = next((folder / "vae").glob("*.safetensors"))
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1000])
    assert "1,000 of" in refusal(folder)
    path.unlink()
    path.symlink_to(folder / "gone")
    assert "link to a file that is gone" in refusal(folder)


def test_the_folder_of_a_download_cache_is_the_model_in_it(variant: Variant, tmp_path: Path):
    """``models--owner--name`` with links to blobs, as the hub's library writes it."""
    cache, folder = tmp_path / "models--owner--sdxl-turbo", variant()
    snapshot = cache / "snapshots" / "abc123"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc123")
    (cache / "blobs").mkdir()
    for number, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        blob, link = cache / "blobs" / str(number), snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    for place in (cache, snapshot):
        info = identify(str(place))
        assert (info.folder, info.few_steps and info.few_steps.method) == (snapshot, "Turbo")


def test_places_beside_the_model_are_said(variant: Variant, tmp_path: Path):
    folder = variant()
    assert "folder above" in refusal(folder / "unet")
    assert "folder that contains" in refusal(folder / "model_index.json")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "dream.safetensors").write_bytes(b"")
    assert "dream.safetensors" in refusal(tmp_path / "one")


@pytest.mark.parametrize(("changes", "words"), [
    ({"unet": {"in_channels": 9}}, "inpainting"), ({"unet": {"time_cond_proj_dim": 256}}, "LCM"),
    ({"scheduler": {"_class_name": "EDMDPMSolverMultistepScheduler"}}, "EDM"),
    ({"vae": {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}}, "EDM"),
    ({"scheduler": {"prediction_type": "flow_prediction"}}, "flow"), ({"scheduler": {"use_flow_sigmas": True}}, "flow"),
    ({"scheduler": {"prediction_type": "score"}}, "score"),
])   # fmt: skip
def test_models_that_are_trained_otherwise_are_refused(variant: Variant, changes: dict[str, dict], words: str):
    assert words in refusal(variant(**changes))


@pytest.mark.parametrize(("name", "accepted"), [
    ("StableDiffusionImg2ImgPipeline", True), ("StableDiffusionInpaintPipeline", True),
    ("StableDiffusion3Pipeline", False), ("FluxPipeline", False), ("StableDiffusionUpscalePipeline", False),
    ("StableDiffusionInstructPix2PixPipeline", False), ("KandinskyPipeline", False), (None, False),
])   # fmt: skip
def test_pipelines_over_the_same_parts_are_known(variant: Variant, name: str | None, accepted: bool):
    folder = variant()
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": name}))
    if accepted:
        assert identify(str(folder)).family == "embedded"
    else:
        assert "not supported" in refusal(folder)


@pytest.mark.parametrize(("scheduler", "method"), [
    ("LCMScheduler", "LCM"), ("TCDScheduler", "Hyper"), ("DDIMScheduler", "")])
def test_the_scheduler_of_few_steps_tells_a_distilled_model(variant: Variant, scheduler: str, method: str):
    few = identify(str(variant(scheduler={"_class_name": scheduler}))).few_steps
    assert (few.method if few else "") == method


@pytest.mark.parametrize("chosen", ["epsilon", "v_prediction", "sample"])
def test_what_is_predicted_can_be_said_by_hand(base: Path, chosen: str):
    model = load(str(base), "cpu", options=BaseOptions(chosen))
    assert model.info.prediction_type == model.scheduler.config.prediction_type == chosen


def test_variants_are_sorted_out_by_their_names():
    names = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors",
             "diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.json",
             "diffusion_pytorch_model.bin", "config.json", "model.safetensors"]   # fmt: skip
    found = find_variants("unet", names)
    assert [(one.variant, one.is_complete()) for one in found] == [("fp16", True), ("non_ema", True), ("", False)]
    whole = find_variants("unet", [*names, "diffusion_pytorch_model-00002-of-00002.safetensors"])
    assert (whole[0].variant, whole[0].index) == ("", "diffusion_pytorch_model.safetensors.index.json")


def tiny_vae(**changes: object) -> AutoencoderKL:
    settings = {"sample_size": 32, "latent_channels": 4, "block_out_channels": (4, 8, 8), "norm_num_groups": 4,
                "scaling_factor": 0.7, "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3}   # fmt: skip
    return AutoencoderKL.from_config({**settings, **changes})   # type: ignore[return-value]


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE of the same shape with other weights, as a folder."""
    torch.manual_seed(99)
    folder = tmp_path_factory.mktemp("vae") / "other"
    tiny_vae().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["folder", "file", "within"])
def test_a_separate_vae_takes_the_place_of_the_model_s_own(
    base: Path, model: BaseModel, other_vae: Path, tmp_path: Path, form: str
):
    given = {"folder": other_vae, "file": other_vae / "diffusion_pytorch_model.safetensors", "within": tmp_path}[form]
    (tmp_path / "vae").symlink_to(other_vae)   # inside a whole model's folder
    changed = load(str(base), "cpu", options=BaseOptions(vae=str(given)))
    stored = load_file(other_vae / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(changed.vae.state_dict()[name], value) for name, value in stored.items())
    assert not torch.equal(changed.vae.decoder.conv_in.weight, model.vae.decoder.conv_in.weight)
    assert torch.equal(changed.unet.conv_in.weight, model.unet.conv_in.weight)


def test_a_model_whose_own_vae_is_missing_works_with_another(variant: Variant, other_vae: Path):
    folder = variant()
    next((folder / "vae").glob("*.safetensors")).unlink()
    refusal(folder)
    assert identify(str(folder), BaseOptions(vae=str(other_vae))).separate_vae == other_vae


@pytest.mark.parametrize(("changes", "words"), [
    ({"latent_channels": 16}, "16 channels"), ({"scaling_factor": 0.13025}, "scales its latents"),
    ({"block_out_channels": (4, 8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 4,
      "up_block_types": ("UpDecoderBlock2D",) * 4}, "8 times smaller"),
    ({"block_out_channels": (4, 8, 16)}, "16 channels in its first layer"),
])   # fmt: skip
def test_a_vae_of_another_family_is_refused(base: Path, tmp_path: Path, changes: dict[str, object], words: str):
    tiny_vae(**changes).save_pretrained(tmp_path / "vae-of-another")
    assert words in refusal(base, BaseOptions(vae=str(tmp_path / "vae-of-another")))


def test_other_files_are_no_vae(base: Path, tmp_path: Path):
    save_file({"decoder.layers.0.weight": torch.zeros(4)}, tmp_path / "taesd.safetensors")
    (tmp_path / "vae.pt").write_bytes(b"PK\x03\x04" + bytes(80))
    for vae, words in ((base / "unet", "config.json"), (tmp_path / "taesd.safetensors", "not a VAE"),
                       (tmp_path / "vae.pt", "pickle"), (tmp_path / "nowhere", "does not exist")):   # fmt: skip
        with pytest.raises(BaseError, match=words):
            identify(str(base), BaseOptions(vae=str(vae)))
