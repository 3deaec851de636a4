"""Checkpoints in one file: recognised from the header, loaded without network, the same model as the folder."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any, NamedTuple

import families
import numpy as np
import pytest
import torch
from families import FAMILIES, write_configurations, write_models
from safetensors.torch import load_file, save_file

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.family import FAMILIES as FAMILY_RECORDS
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.export import export
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models import single_file
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings, load
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import BaseOptions
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs.run import run
from atelier.training.sampling.sample import DrawRequest, draw


class Twin(NamedTuple):
    family: str
    prediction: str
    folder: Path
    file: Path


@pytest.fixture(scope="module", params=[("sd1", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon")],
                ids=FAMILIES)   # fmt: skip
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A small model of each family, as a folder and as a single file; the configurations in assets stand aside."""
    family, prediction = request.param
    place = tmp_path_factory.mktemp(family)
    configurations = write_configurations(place / "models", family)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single_file, "MODELS", configurations)
        yield Twin(family, prediction, *write_models(place, family, prediction, configurations))
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def pair(twin: Twin) -> tuple[BaseModel, BaseModel]:
    return load(str(twin.folder), "cpu"), load(str(twin.file), "cpu")


def test_a_file_is_told_from_its_header_alone(twin: Twin):
    info = identify(str(twin.file))
    assert (info.family, info.prediction_type, info.precision) == (twin.family, twin.prediction, "fp32")
    assert (info.file, info.bytes) == (twin.file, twin.file.stat().st_size)
    folder = identify(str(twin.folder))
    assert (folder.family, folder.prediction_type, folder.precision) == (twin.family, twin.prediction, "fp32")
    assert (folder.size_multiple, folder.vae_scale_factor) == (info.size_multiple, info.vae_scale_factor)
    assert folder.channels == info.channels


def test_both_forms_hold_the_same_weights(pair: tuple[BaseModel, BaseModel]):
    folder, file = ({**model.models(), "vae": model.vae} for model in pair)
    assert folder.keys() == file.keys()
    for name, part in folder.items():
        ours, theirs = part.state_dict(), file[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_both_forms_compute_the_same(pair: tuple[BaseModel, BaseModel]):
    torch.manual_seed(3)
    width = pair[0].unet.config.cross_attention_dim
    pooled = torch.randn(2, 1280) if pair[0].text_encoder_2 is not None else None
    text = PromptEmbeddings(torch.randn(2, 77, width), pooled)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        first, second = (model.predict(noisy, timesteps, text, [(64, 64, 0, 0, 64, 64)] * 2) for model in pair)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)   # the last digits depend on where weights lie
    assert first.std() > 0


def test_both_forms_draw_the_same(pair: tuple[BaseModel, BaseModel]):
    request = DrawRequest(prompt="a red fox", steps=2, width=64, height=64)
    first, second = (np.asarray(draw(model, request)[0]).astype(int) for model in pair)
    assert first.shape == (64, 64, 3)
    assert abs(first - second).max() <= 1   # where the weights lie in memory decides a processor's last digits


def test_the_vae_stays_exact_when_the_rest_is_not(twin: Twin):
    model = load(str(twin.file), "cpu", torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.text_encoder.parameters()} == {torch.bfloat16}
    stored = load_file(twin.file)["first_stage_model.decoder.conv_in.weight"]
    assert torch.equal(model.vae.decoder.conv_in.weight, stored)


def test_a_single_file_is_taught_drawn_with_mixed_and_exported(
    twin: Twin, pictures: Path, tmp_path: Path, unplugged: list[Any]
):
    config = TrainConfig(
        name="rex", pictures=str(pictures), base=str(twin.file), steps=2, batch=2, lr=1e-2, warmup=0, resolution=64,
        precision="fp32", prior_count=2, validate_every=0, preview_every=0, checkpoint_every=0,
        train_text_encoder=True, adapter={"rank": 2},
    )   # fmt: skip
    last = list(run(RunFolder.create(tmp_path / "run", config), tmp_path))[-1]
    assert isinstance(last, Finished), last
    model, adapters = load(str(twin.folder), "cpu"), load_adapter(Path(last.path))
    assert adapters.components() == set(model.models())
    request = DrawRequest(prompt="a rex", steps=2, width=64, height=64)
    without, once, twice = (
        draw(model, request, Mix(parts))[0].tobytes()
        for parts in ((), ((adapters, 1.0),), ((adapters, 1.0), (adapters, 1.0)))
    )
    assert len({without, once, twice}) == 3
    kohya = tmp_path / "kohya.safetensors"
    assert export(Path(last.path), kohya, "kohya").exact
    prefixes = {key.split("_")[1] for key in load_file(kohya)}
    assert prefixes == ({"unet", "te1", "te2"} if twin.family == "sdxl" else {"unet", "te"})
    noisy, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([500])
    text = PromptEmbeddings(torch.randn(1, 77, model.unet.config.cross_attention_dim),
                torch.randn(1, 1280) if twin.family == "sdxl" else None)   # fmt: skip
    with torch.no_grad():
        sizes = [(64, 64, 0, 0, 64, 64)]


        with mount(model.models(), Mix(((adapters, 1.0),))):
            ours = model.predict(noisy, timesteps, text, sizes)
        model.pipeline.load_lora_weights(str(kohya))
        theirs = model.predict(noisy, timesteps, text, sizes)
    assert (ours - theirs).abs().max() < 1e-4
    assert unplugged == []   # all of it without asking the network for anything


def refusal(path: Path) -> str:
    with pytest.raises(BaseError) as caught:
        identify(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def header(path: Path, **shapes: tuple[int, ...]) -> Path:
    """A safetensors file with tensors of these names and shapes, all zero."""
    save_file({name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_a_truncated_file_says_how_much_is_missing(twin: Twin, tmp_path: Path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(twin.file.read_bytes()[:-1000])
    assert "1,000 of" in refusal(path)
    path.write_bytes(twin.file.read_bytes()[:1000])
    assert "is incomplete" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>Sign in to download</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1 and so on and on", "Git LFS"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00pickled", "a pickle"),
        (b"PK\x03\x04 the form that torch.save writes", "a pickle"),
        (b"", "empty"),
        (struct.pack("<Q", 20) + b'{"a": 1, "b": [1, 2]}', "damaged"),
        (struct.pack("<Q", 6) + b"[1, 2]", "damaged"),
    ],
)   # fmt: skip
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_the_content_decides_what_a_file_is(tmp_path: Path, content: bytes, words: str, name: str):
    path = tmp_path / name
    path.write_bytes(content)
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"lora_unet_mid_block.lora_down.weight": (4, 8)}, "adapter"),
        ({"unet.mid_block.to_q.lora.up.weight": (4, 8)}, "adapter"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "FLUX"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (4, 4)}, "FLUX"),
        ({"control_model.input_blocks.0.0.weight": (4, 4)}, "ControlNet"),
        ({"emb_params": (5, 768)}, "textual inversion"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4), "up_blocks.0.conv": (4,)}, "model_index.json"),
        ({"encoder.down.0.conv": (4,), "decoder.up.0.conv": (4,)}, "only a VAE"),
        ({"something": (4,)}, "no Stable Diffusion model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)}, "width 0"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, names: dict[str, tuple[int, ...]], words: str):
    assert words in refusal(header(tmp_path / "other.safetensors", **names))


def changed(twin: Twin, path: Path, **changes: torch.Tensor | None) -> Path:
    tensors = load_file(twin.file)
    for name, value in changes.items():
        if value is None:
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
        else:
            tensors[name] = value
    save_file(tensors, path)
    return path


def test_inpainting_and_its_like_are_refused_by_name(twin: Twin, tmp_path: Path):
    conv_in = "model.diffusion_model.input_blocks.0.0.weight"
    path = changed(twin, tmp_path / "nine.safetensors", **{conv_in: torch.zeros(32, 9, 3, 3)})
    assert "inpainting" in refusal(path)


def test_a_file_without_its_text_encoder_or_vae_is_refused(twin: Twin, tmp_path: Path):
    text = "conditioner" if twin.family == "sdxl" else "cond_stage_model"
    assert "no text encoder" in refusal(changed(twin, tmp_path / "mute.safetensors", **{text: None}))
    assert "no VAE" in refusal(changed(twin, tmp_path / "blind.safetensors", first_stage_model=None))


def test_a_text_encoder_of_another_model_is_refused(twin: Twin, tmp_path: Path):
    name = {"sd1": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            "sd2": "cond_stage_model.model.token_embedding.weight",
            "sdxl": "conditioner.embedders.1.model.token_embedding.weight"}[twin.family]   # fmt: skip
    path = changed(twin, tmp_path / "other.safetensors", **{name: torch.zeros(100, 640)})
    assert "width 640" in refusal(path)


def test_a_file_that_lacks_weights_is_refused(twin: Twin, tmp_path: Path):
    path = changed(twin, tmp_path / "less.safetensors", **{"model.diffusion_model.middle_block.1.proj_in": None})
    assert "lacks 2 weights" in refusal(path)


def test_names_without_text_model_are_loaded(twin: Twin, pair: tuple[BaseModel, BaseModel], tmp_path: Path):
    """What some tools write; diffusers itself leaves such a text encoder without weights."""
    tensors = {name.replace("transformer.text_model.", "transformer."): value
               for name, value in load_file(twin.file).items()}   # fmt: skip
    save_file(tensors, tmp_path / "short.safetensors")
    ours, whole = load(str(tmp_path / "short.safetensors"), "cpu").text_encoder.state_dict(), pair[0].text_encoder
    assert all(torch.equal(ours[name], value) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_floating_precision_is_loaded_as_diffusers_does(twin: Twin, tmp_path: Path, dtype: torch.dtype):
    if twin.family != "sd1":
        pytest.skip("the precision is the same matter in all families")
    path = tmp_path / "other.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(twin.file).items()}, path)
    model = load(str(path), "cpu")
    assert (model.dtype, model.vae.dtype) == (torch.float32, torch.float32)
    options: Any = {"config": str(single_file.MODELS / "sd1"), "subfolder": "unet", "torch_dtype": torch.float32}
    theirs = families.UNet2DConditionModel.from_single_file(str(path), **options)
    assert all(torch.equal(model.unet.state_dict()[name], value) for name, value in theirs.state_dict().items())
    name = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(model.vae.decoder.conv_in.weight, load_file(path)[name].float())


def test_weights_beside_the_model_s_own_are_left_alone(twin: Twin, pair: tuple[BaseModel, BaseModel], tmp_path: Path):
    """Averages of training (EMA), schedules and positions that official checkpoints hold as well."""
    tensors = load_file(twin.file)
    unet = "model.diffusion_model."
    ema = {"model_ema." + name[len("model."):].replace(".", ""): value + 1 for name, value in tensors.items()
           if name.startswith(unet)}   # fmt: skip
    extra = {"alphas_cumprod": torch.rand(1000), "model_ema.decay": torch.tensor(0.9),
             "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}   # fmt: skip
    save_file({**tensors, **ema, **extra}, tmp_path / "ema.safetensors")
    model = load(str(tmp_path / "ema.safetensors"), "cpu")
    for name, part in pair[0].models().items():
        read = model.models()[name].state_dict()
        assert all(torch.equal(read[key], value) for key, value in part.state_dict().items()), name


def test_a_file_without_vae_is_loaded_with_another(twin: Twin, tmp_path: Path):
    path = changed(twin, tmp_path / "blind.safetensors", first_stage_model=None)
    assert "--vae" in refusal(path)
    other = load(str(path), "cpu", options=BaseOptions(vae=str(twin.file)))   # the VAE inside a whole checkpoint
    stored = load_file(twin.file)["first_stage_model.decoder.conv_in.weight"]
    assert torch.equal(other.vae.decoder.conv_in.weight, stored)


def test_what_the_weights_predict_is_read_beside_them(tmp_path: Path):
    """Nothing in the weights says it: metadata, a sidecar or a trainer's mark does."""
    def prediction(name: str, family: str = "sd1", metadata: dict[str, str] | None = None, *marks: str) -> str:
        tensors = {mark: families_entry() for mark in marks}
        return single_file._prediction(tmp_path / name, metadata or {}, tensors, FAMILY_RECORDS[family])[0]

    assert prediction("a.safetensors") == "epsilon"
    assert prediction("a.safetensors", metadata={"modelspec.prediction_type": "v"}) == "v_prediction"
    assert prediction("a.safetensors", "sdxl", None, "v_pred") == "v_prediction"
    assert prediction("v2-1_768-ema-pruned.safetensors", "sd2") == "v_prediction"
    assert prediction("v2-1_512-ema-pruned.safetensors", "sd2") == "epsilon"
    assert prediction("a.safetensors", "sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}) == "epsilon"
    (tmp_path / "b.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert prediction("b.safetensors") == "v_prediction"
    (tmp_path / "c.yaml").write_text("model:\n  params: {}\n")
    assert prediction("c.safetensors", "sd2") == "epsilon"


def families_entry() -> single_file.TensorEntry:
    return single_file.TensorEntry("F32", (), 4)


def test_the_tokenizer_numbers_words_as_clip_does():
    """Numbers from OpenAI's CLIP: simple_tokenizer.py over the same merges."""
    ids = single_file.clip_tokenizer("<|endoftext|>")("a photo of a cat, 512!", padding="max_length").input_ids
    assert ids[:12] == [49406, 320, 1125, 539, 320, 2368, 267, 276, 272, 273, 256, 49407]
    assert (len(ids), set(ids[12:])) == (77, {49407})


def test_later_families_fill_captions_up_with_token_0():
    ids = single_file.clip_tokenizer("!")("a cat", padding="max_length").input_ids
    assert (ids[:4], set(ids[4:])) == ([49406, 320, 2368, 49407], {0})


def test_the_shipped_configurations_are_the_true_models():
    counts = {}
    for family in FAMILIES:
        with torch.device("meta"):
            unet: Any = families.UNet2DConditionModel.from_config(families.configuration(family, "unet"))
            vae: Any = families.AutoencoderKL.from_config(families.configuration(family, "vae"))
        counts[family] = (unet.num_parameters(), vae.num_parameters())
    assert counts == {
        "sd1": (859_520_964, 83_653_863), "sd2": (865_910_724, 83_653_863), "sdxl": (2_567_463_684, 83_653_863),
    }   # fmt: skip


def test_pictures_of_sdxl_carry_their_sizes(twin: Twin, pair: tuple[BaseModel, BaseModel]):
    if twin.family != "sdxl":
        pytest.skip("other families don't look at sizes")
    torch.manual_seed(3)
    text = PromptEmbeddings(torch.randn(1, 77, 2048), torch.randn(1, 1280))
    with torch.no_grad():
        first, second = (pair[0].predict(torch.ones(1, 4, 8, 8), torch.tensor([9]), text, [size])
                   for size in ((64, 64, 0, 0, 64, 64), (64, 64, 0, 32, 64, 64)))   # fmt: skip
    assert not torch.allclose(first, second)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("family", "prediction"), [
    ("sd1", "epsilon"), ("sd2", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon")])
def test_full_size_models_load_from_both_forms(family: str, prediction: str, tmp_path: Path):
    folder, file = write_models(tmp_path, family, prediction, dtype=torch.bfloat16)
    infos = [identify(str(path)) for path in (folder, file)]
    expected = (family, prediction, {"sd1": 512, "sdxl": 1024}.get(family, 768 if "v" in prediction else 512))
    assert all((info.family, info.prediction_type, info.resolution) == expected for info in infos)
    folder_model = load(str(folder), "cpu", torch.bfloat16)
    states = {name: part.state_dict() for name, part in folder_model.models().items()}
    file_model = load(str(file), "cpu", torch.bfloat16)
    for name, part in file_model.models().items():
        assert all(torch.equal(states[name][key], value) for key, value in part.state_dict().items()), name
    print(json.dumps({"family": family, "prediction": prediction, "bytes": infos[1].bytes}))
    shutil.rmtree(tmp_path)
