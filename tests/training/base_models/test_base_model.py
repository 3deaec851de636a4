"""What a base model is, told from its files; and what is said about things that are none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import load
from atelier.training.base_models.identify import EMBEDDED_FOLDER, identify, identify_folder


def refusal(base: Path | str) -> str:
    with pytest.raises(BaseError) as caught:
        identify(str(base))
    assert str(base) in str(caught.value)
    return str(caught.value)


def test_the_embedded_base_model():
    info = identify("embedded")
    unet, vae = (json.loads((EMBEDDED_FOLDER / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert (info.source, info.family, info.folder) == ("embedded", "embedded", EMBEDDED_FOLDER)
    assert (info.prediction_type, info.resolution) == ("v_prediction", 128)
    assert (info.vae_scale_factor, info.size_multiple) == (8, 32)
    assert info.channels == unet["block_out_channels"][0]
    assert info.resolution == unet["sample_size"] * info.vae_scale_factor == vae["sample_size"]
    assert "{trigger} {subject}" in info.caption
    assert len(info.prior_prompts) >= 16
    assert not any("{" in prompt for prompt in info.prior_prompts)


def test_a_folder_is_identified_by_its_configurations(base):
    info = identify(str(base))
    assert (info.source, info.title, info.family, info.folder) == (str(base), "tiny", "embedded", base)
    assert (info.prediction_type, info.resolution, info.vae_scale_factor, info.size_multiple, info.channels) == (
        "v_prediction", 32, 4, 8, 16,
    )  # fmt: skip
    assert info.caption == "a photo of {trigger} {subject}"
    assert info.prior_prompts == ()


def test_a_folder_is_found_in_the_home_folder_too(base, monkeypatch):
    monkeypatch.setenv("HOME", str(base.parent))
    assert identify("~/tiny").folder == base


@pytest.mark.parametrize(("width", "family"), [(192, "embedded"), (768, "sd1"), (1024, "sd2")])
def test_the_width_of_the_text_tells_the_family(variant, width, family):
    folder = variant(unet={"cross_attention_dim": width}, text_encoder={"hidden_size": width})
    assert identify_folder("tiny", folder, whole=False).family == family   # its weights are of the first width


@pytest.mark.parametrize("width", [77, None, [192, 192]])
def test_an_unknown_width_is_refused(variant, width):
    assert "unknown family" in refusal(variant(unet={"cross_attention_dim": width}))


def test_the_refiner_is_refused_by_name(variant):
    assert "refiner" in refusal(variant(unet={"cross_attention_dim": 1280}))


def test_a_text_encoder_of_another_width_is_refused(variant):
    message = refusal(variant(text_encoder={"hidden_size": 768}))
    assert "768" in message
    assert "192" in message


def test_the_prediction_type_is_the_scheduler_s(epsilon_base, variant):
    assert identify(str(epsilon_base)).prediction_type == "epsilon"   # its file does not say: epsilon is the custom
    assert identify(str(variant(scheduler={"prediction_type": "sample"}))).prediction_type == "sample"


def test_an_inpainting_model_is_refused_by_name(variant):
    assert "inpainting" in refusal(variant(unet={"in_channels": 9}))


def test_another_pipeline_is_refused_by_name(variant):
    folder = variant()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    assert "FluxPipeline" in refusal(folder)


@pytest.mark.parametrize(
    "part", ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("damage", ["gone", "cut", "list", "empty"])
def test_a_folder_without_a_whole_configuration_is_no_base_model(variant, part, damage):
    folder = variant()
    path = folder / part
    if damage == "gone":
        path.unlink()
    else:
        path.write_text({"cut": path.read_text()[:30], "list": "[1, 2]", "empty": "{}"}[damage], encoding="utf-8")
    if (part, damage) == ("scheduler/scheduler_config.json", "empty"):
        assert identify(str(folder)).prediction_type == "epsilon"   # every one of its entries has a default
    else:
        refusal(folder)


def test_a_folder_of_pictures_is_no_base_model(pictures):
    message = refusal(pictures)
    assert "is not a base model" in message
    assert "model_index.json" in message


@pytest.mark.parametrize("base", ["/nowhere/at/all", "./tiny", "~/tiny", "tiny", "a/b/c", "bad\0name",
                                  "my models/fox, best", "-/..", "a/..", "a/model.safetensors", "a/model.ckpt"])
def test_a_path_to_nothing_is_refused(base):
    assert "does not exist" in refusal(base)


def test_a_hub_id_without_network_is_a_clear_refusal():
    message = refusal("somebody/their-model")
    assert "could not be downloaded" in message
    assert "\n" not in message


def test_loading_gives_the_parts_frozen_and_whole(base, model):
    for name, part in {**model.models(), "vae": model.vae}.items():
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
        (file,) = (base / name).glob("*.safetensors")
        stored = load_file(file)
        own = part.state_dict()
        assert stored.keys() <= own.keys()
        assert all(torch.equal(own[key], value) for key, value in stored.items())
        assert {own[key].dtype for key in stored} == {torch.float32}
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert set(model.models()) == {"unet", "text_encoder"}
    assert model.scheduler.config.prediction_type == "v_prediction"


def test_the_pipeline_is_made_of_these_very_parts(model):
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert getattr(model.pipeline, name) is getattr(model, name)
    assert model.pipeline is model.pipeline


def test_another_precision_leaves_the_vae_in_float32(base):
    model = load(str(base), "cpu", torch.bfloat16)
    dtypes = [next(part.parameters()).dtype for part in (model.unet, model.text_encoder, model.vae)]
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_latents_are_never_clipped_whatever_an_old_scheduler_file_leaves_out(epsilon_model):
    """diffusers' DDIM clips to −1 … 1 unless told not to; that is meant for pixels and spoils latents."""
    assert not epsilon_model.scheduler.config.clip_sample
    assert epsilon_model.scheduler.config.prediction_type == "epsilon"


def damaged(variant, part: str, damage: str) -> Path:
    folder = variant()
    (path,) = (folder / part).glob("*.safetensors")
    whole, tensors = path.read_bytes(), load_file(path)
    path.unlink()   # it is a link to the file that others use
    if damage == "cut":
        path.write_bytes(whole[:-1000])
    elif damage == "noise":
        path.write_bytes(b"not safetensors at all" * 100)
    elif damage == "other":
        first = next(key for key, value in tensors.items() if value.dim() >= 2)
        save_file({**tensors, first: torch.zeros(3, 3)}, path, {"format": "pt"})
    elif damage == "less":
        save_file(dict(list(tensors.items())[1:]), path, {"format": "pt"})
    return folder


def renamed(variant, part: str, old: str, new: str) -> Path:
    folder = variant()
    (path,) = (folder / part).glob("*.safetensors")
    tensors = {re.sub(old, new, key): value for key, value in load_file(path).items()}
    assert any(re.search(new, key) for key in tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    return folder


def test_the_names_of_older_text_encoders_are_known(variant, model):
    """Stable Diffusion 1.5's file has a level more than transformers 5 writes."""
    old = load(str(renamed(variant, "text_encoder", r"^(text_model\.)?", "text_model.")), "cpu")
    own, read = model.text_encoder.state_dict(), old.text_encoder.state_dict()
    assert all(torch.equal(own[key], read[key]) for key in own)


def test_the_names_of_older_vaes_are_known(variant, model):
    """Stable Diffusion 1.5's VAE names its attention as diffusers did in 2022."""
    folder = renamed(variant, "vae", r"to_out\.0\.", "proj_attn.")
    (path,) = (folder / "vae").glob("*.safetensors")
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value."}
    tensors = load_file(path)
    for new, old in names.items():
        tensors = {key.replace(new, old): value for key, value in tensors.items()}
    save_file(tensors, path, {"format": "pt"})
    own, read = model.vae.state_dict(), load(str(folder), "cpu").vae.state_dict()
    assert all(torch.equal(own[key], read[key]) for key in own)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["gone", "cut", "noise", "other", "less"])
def test_weights_that_are_not_whole_are_refused(variant, part, damage):
    folder = damaged(variant, part, damage)
    with pytest.raises(BaseError) as caught:
        load(str(folder), "cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_refused(variant):
    folder = variant()
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(BaseError, match="prompts can't be read"):
        identify(str(folder))
