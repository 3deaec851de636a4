"""Other tools' files: every algorithm against LyCORIS and PEFT themselves, real files, and files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lycoris.modules.glora as glora
import lycoris.modules.ia3 as ia3
import lycoris.modules.locon as locon
import lycoris.modules.loha as loha
import lycoris.modules.lokr as lokr
import peft
import pytest
import torch
from lycoris.functional.general import rebuild_tucker
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import MountError, mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.detect import detect
from atelier.adapters.formats.export import export_mix
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.formats.read_foreign import count_zero_layers, read_foreign
from atelier.adapters.formats.safetensors_header import FileError

WILD = Path(__file__).parents[4] / "shared" / "real_adapters"   # beside the project, where there are any
BLOCK = "unet.down_blocks.0"
PLACES = {   # our name → kohya's, and the layer
    f"{BLOCK}.attentions.0.transformer_blocks.0.ff.net.2": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2", lambda: nn.Linear(12, 10)),
    f"{BLOCK}.resnets.0.conv1": ("lora_unet_down_blocks_0_resnets_0_conv1", lambda: nn.Conv2d(6, 8, 3, padding=1)),
    f"{BLOCK}.resnets.0.conv_shortcut": ("lora_unet_down_blocks_0_resnets_0_conv_shortcut", lambda: nn.Conv2d(6, 8, 1)),
}   # fmt: skip
KINDS: dict[str, Any] = {
    "LoRA": lambda name, module: locon.LoConModule(name, module, 1, 4, 3.0),
    "LoRA of rank-stable scale": lambda name, module: locon.LoConModule(name, module, 1, 4, 3.0, rs_lora=True),
    "LoCon with a core": lambda name, module: locon.LoConModule(name, module, 1, 4, 3.0, use_tucker=True),
    "LoHa": lambda name, module: loha.LohaModule(name, module, 1, 3, 2.0),
    "LoHa with cores": lambda name, module: loha.LohaModule(name, module, 1, 3, 2.0, use_tucker=True),
    "LoKr": lambda name, module: lokr.LokrModule(name, module, 1, 2, 3.0, factor=2),
    "LoKr of two products": lambda name, module: lokr.LokrModule(
        name, module, 1, 1, 3.0, factor=4, decompose_both=True),
    "LoKr, whole": lambda name, module: lokr.LokrModule(name, module, 1, 100000, 3.0, factor=2),
    "GLoRA": lambda name, module: glora.GLoRAModule(name, module, 1, 2, 3.0),
    "IA3": lambda name, module: ia3.IA3Module(name, module, 1),
    "IA3 on inputs": lambda name, module: ia3.IA3Module(name, module, 1, train_on_input=True),
    "DoRA by rows": lambda name, module: locon.LoConModule(name, module, 1, 4, 3.0, weight_decompose=True),
    "DoRA by columns": lambda name, module: locon.LoConModule(
        name, module, 1, 4, 3.0, weight_decompose=True, wd_on_out=False),
    "DoRA of LoHa": lambda name, module: loha.LohaModule(name, module, 1, 3, 2.0, weight_decompose=True),
    "DoRA of LoKr": lambda name, module: lokr.LokrModule(name, module, 1, 2, 3.0, factor=2, weight_decompose=True),
}   # fmt: skip


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch: pytest.MonkeyPatch):
    """LyCORIS would compile its reference."""
    monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")


class Block(nn.Module):
    """A model whose only modules are those of a file."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        place: nn.Module = self
        *path, last = name.split(".")[1:]
        for step in path:
            inner = nn.Module()
            place.add_module(step, inner)
            place = inner
        place.add_module(last, module)


def delta(adapters: AdapterSet, module: nn.Module) -> Tensor:
    (adapter,) = adapters
    return adapter.delta(module.weight.detach())


@pytest.mark.parametrize("place", PLACES, ids=["linear", "3x3", "1x1"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_as_lycoris_computes_it(tmp_path: Path, kind: str, place: str):
    kohya, make = PLACES[place]
    torch.manual_seed(0)
    module = make()
    theirs = KINDS[kind](kohya, module)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    weights = {f"{kohya}.{key}": value.detach().contiguous()
               for key, value in (theirs.custom_state_dict() or theirs.state_dict()).items()}   # fmt: skip
    save_file(weights, tmp_path / "a.safetensors")
    x = torch.randn(2, 12) if isinstance(module, nn.Linear) else torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        base = module(x)
        theirs.org_forward = module.forward   # what it calls when it is applied to the module
        expected = theirs(x)                  # as it was trained; its own merging of LoHa scales twice
    assert (expected - base).abs().max() > 0.05

    adapters, contents = read_foreign(tmp_path / "a.safetensors")
    assert contents.unknown == ()
    save_adapter(tmp_path / "b.safetensors", adapters, {})
    again = load_adapter(tmp_path / "b.safetensors")
    assert torch.equal(delta(again, module), delta(adapters, module))
    assert again.tensors().keys() == adapters.tensors().keys()

    models = {"unet": Block(place, module)}
    with torch.no_grad():
        for attach in (mount, merge):
            with attach(models, Mix(((again, 1.0),))):
                assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
            with attach(models, Mix(((again, 0.5),))):
                assert_close(module(x), (base + expected) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["diffusers", "diff"])
@pytest.mark.parametrize("place", PLACES, ids=["linear", "3x3", "1x1"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("Lo")])
def test_round_trips_change_nothing(tmp_path: Path, kind: str, place: str, form: str):
    """In, kept as our own file, out, and in again."""
    if (kind, form) == ("LoKr, whole", "diffusers"):
        pytest.skip("no exact low-rank pair")
    kohya, make = PLACES[place]
    torch.manual_seed(0)
    module = make()
    theirs = KINDS[kind](kohya, module)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    weights = {f"{kohya}.{key}": value.detach().contiguous()
               for key, value in (theirs.custom_state_dict() or theirs.state_dict()).items()}   # fmt: skip
    save_file(weights, tmp_path / "a.safetensors")
    first, _ = read_foreign(tmp_path / "a.safetensors")
    save_adapter(tmp_path / "own.safetensors", first, {"atelier.family": "sd1"})
    report = export_mix([(tmp_path / "own.safetensors", 1.0)], tmp_path / "b.safetensors", form,
                        weight_of=lambda name: module.weight.detach())   # fmt: skip
    assert report.exact
    again, contents = read_foreign(tmp_path / "b.safetensors")
    assert contents.family == "sd1"
    assert_close(delta(again, module), delta(first, module), rtol=1e-5, atol=1e-6)


def test_lokr_with_a_core(tmp_path: Path):
    """LyCORIS (4.1.3) stops at this one itself, for torch.kron wants contiguous memory: its own parts, put together."""
    kohya, make = PLACES[f"{BLOCK}.resnets.0.conv1"]
    torch.manual_seed(0)
    parts = {"lokr_w1": torch.randn(2, 2), "lokr_w2_a": torch.randn(3, 4), "lokr_w2_b": torch.randn(3, 3),
             "lokr_t2": torch.randn(3, 3, 3, 3), "alpha": torch.tensor(2.0)}   # fmt: skip
    save_file({f"{kohya}.{key}": value for key, value in parts.items()}, tmp_path / "a.safetensors")
    large = rebuild_tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"]).contiguous()
    expected = 2 / 3 * torch.kron(parts["lokr_w1"][:, :, None, None], large)
    assert_close(delta(read_foreign(tmp_path / "a.safetensors")[0], make()), expected, rtol=1e-5, atol=1e-5)


def test_whole_differences_biases_and_normalizations(tmp_path: Path):
    torch.manual_seed(0)
    unet = Block(f"{BLOCK}.resnets.0.conv1", nn.Conv2d(4, 8, 3, padding=1))
    resnet = unet.get_submodule("down_blocks.0.resnets.0")
    resnet.add_module("norm1", nn.GroupNorm(2, 4))
    resnet.add_module("time_emb_proj", nn.Linear(5, 6))
    layer = "lora_unet_down_blocks_0_resnets_0"
    tensors = {f"{layer}_conv1.diff": torch.randn(8, 4, 3, 3), f"{layer}_conv1.diff_b": torch.randn(8),
               f"{layer}_norm1.w_norm": torch.randn(4), f"{layer}_norm1.b_norm": torch.randn(4),
               f"{layer}_time_emb_proj.diff_b": torch.randn(6)}   # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    adapters, contents = read_foreign(tmp_path / "a.safetensors")
    assert contents.algorithms == {"full": 1, "norm": 1, "bias": 1}
    x, words = torch.randn(2, 4, 5, 5), torch.randn(3, 5)
    before = [parameter.clone() for parameter in unet.parameters()]

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            return [resnet.conv1(x), resnet.norm1(x), resnet.time_emb_proj(words)]

    changed = Block(f"{BLOCK}.resnets.0.conv1", nn.Conv2d(4, 8, 3, padding=1))
    copy = changed.get_submodule("down_blocks.0.resnets.0")
    copy.add_module("norm1", nn.GroupNorm(2, 4))
    copy.add_module("time_emb_proj", nn.Linear(5, 6))
    changed.load_state_dict(unet.state_dict())
    with torch.no_grad():
        copy.conv1.weight += 2 * tensors[f"{layer}_conv1.diff"]
        copy.conv1.bias += 2 * tensors[f"{layer}_conv1.diff_b"]
        copy.norm1.weight += 2 * tensors[f"{layer}_norm1.w_norm"]
        copy.norm1.bias += 2 * tensors[f"{layer}_norm1.b_norm"]
        copy.time_emb_proj.bias += 2 * tensors[f"{layer}_time_emb_proj.diff_b"]
        expected = [copy.conv1(x), copy.norm1(x), copy.time_emb_proj(words)]
    for attach in (mount, merge):
        with attach({"unet": unet}, Mix(((adapters, 2.0),))):
            for ours, theirs in zip(outputs(), expected, strict=True):
                assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), before, strict=True))


def test_a_bias_where_the_model_has_none_is_named(tmp_path: Path):
    unet = Block(f"{BLOCK}.resnets.0.conv1", nn.Conv2d(4, 8, 3, bias=False))
    layer = "lora_unet_down_blocks_0_resnets_0_conv1"
    save_file({f"{layer}.diff": torch.randn(8, 4, 3, 3), f"{layer}.diff_b": torch.randn(8)}, tmp_path / "a.safetensors")
    adapters, _ = read_foreign(tmp_path / "a.safetensors")
    mix = Mix(((adapters, 1.0),))
    for attach in (mount, merge):
        with pytest.raises(MountError, match=r"conv1 has no bias here"), attach({"unet": unet}, mix):
            pass


PEFT: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: peft.LoraConfig(r=4, lora_alpha=7, target_modules=["2"]),
    "stabilized": lambda: peft.LoraConfig(r=4, lora_alpha=7, target_modules=["2"], use_rslora=True),
    "DoRA": lambda: peft.LoraConfig(r=4, lora_alpha=7, target_modules=["2"], use_dora=True),
    "stabilized DoRA": lambda: peft.LoraConfig(
        r=4, lora_alpha=7, target_modules=["2"], use_dora=True, use_rslora=True),
    "patterns": lambda: peft.LoraConfig(
        r=4, lora_alpha=7, target_modules=["2"], rank_pattern={"net.2": 3}, alpha_pattern={r"ff\..*2": 1}),
    "LoHa": lambda: peft.LoHaConfig(r=4, alpha=7, target_modules=["2"], init_weights=False),
    "LoHa, patterns": lambda: peft.LoHaConfig(
        r=4, alpha=7, target_modules=["2"], init_weights=False, rank_pattern={"2": 3}, alpha_pattern={"2": 1}),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=7, target_modules=["2"], init_weights=False, decompose_factor=2),
    "LoKr, whole": lambda: peft.LoKrConfig(r=40, alpha=7, target_modules=["2"], init_weights=False),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=6, target_r=4, lora_alpha=7, total_step=10, target_modules=["2"]),
}   # fmt: skip


@pytest.mark.parametrize("kind", PEFT)
def test_a_peft_folder(tmp_path: Path, kind: str):
    """PEFT keeps alpha in a file of its own, and the lengths of DoRA's rows under a name of its own."""
    name = f"{BLOCK}.attentions.0.transformer_blocks.0.ff.net.2"
    torch.manual_seed(0)
    module = nn.Linear(12, 10)
    weight = module.weight.detach().clone()
    model = peft.get_peft_model(Block(name, module), PEFT[kind]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.rand_like(parameter))
    model.save_pretrained(tmp_path)
    model.merge_adapter()
    expected = model.base_model.model.get_submodule(name.removeprefix("unet.")).base_layer.weight.detach() - weight
    assert expected.abs().max() > 0.01
    adapters, contents = read_foreign(tmp_path / "adapter_model.safetensors")
    assert contents.unknown == ()
    assert not any("alpha" in note for note in contents.notes)
    (adapter,) = adapters
    assert_close(adapter.delta(weight), expected, rtol=1e-5, atol=1e-6)


# What a file is said to be


def written(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


def lora(width: int = 768, prefix: str = "lora_unet_", block: str = "down_blocks_0") -> dict[str, Tensor]:
    layer = f"{prefix}{block}_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{layer}.lora_up.weight": torch.ones(320, 4), f"{layer}.lora_down.weight": torch.ones(4, width)}


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (192, "embedded")])
def test_the_family_is_told_from_shapes_whatever_the_metadata_say(tmp_path: Path, width: int, family: str):
    contents = detect(written(tmp_path, lora(width), {"ss_base_model_version": "sdxl_base_v1-0"}))
    assert contents.family == family
    assert contents.ranks == (4,)


@pytest.mark.parametrize(("width", "family"), [(192, "embedded"), (1280, "sd1")])
def test_the_embedded_base_is_told_from_the_middle_of_its_unet(tmp_path: Path, width: int, family: str):
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{layer}.lora_up.weight": torch.ones(width, 4), f"{layer}.lora_down.weight": torch.ones(4, width)}
    assert detect(written(tmp_path, tensors)).family == family


def test_what_metadata_say_is_shown(tmp_path: Path):
    tags = {"folder": {"zwx dog": 5, "grass": 2}, "other": {"grass": 9}}
    metadata = {"modelspec.trigger_phrase": "zwx", "ss_tag_frequency": json.dumps(tags)}
    contents = detect(written(tmp_path, lora(), metadata))
    assert (contents.trigger, contents.tags) == ("zwx", (("grass", 11), ("zwx dog", 5)))


def test_what_is_not_used_is_named(tmp_path: Path):
    half = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    contents = detect(written(tmp_path, {**lora(), "strange": torch.ones(1), half: torch.ones(2)}))
    assert set(contents.unknown) == {"strange", half}
    assert any("2 of 4 tensors are not used" in note for note in contents.notes)


def test_an_untrained_layer_is_counted(tmp_path: Path):
    tensors = lora()
    tensors[next(iter(tensors))].zero_()
    assert count_zero_layers(read_foreign(written(tmp_path, tensors))[0]) == 1


REFUSED = {
    "a text embedding": ({"emb_params": torch.ones(5, 768)}, "is a textual inversion"),
    "FLUX": ({"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(4, 4)}, "is an adapter for FLUX"),
    "a checkpoint": ({"first_stage_model.decoder.conv_in.weight": torch.ones(4)}, "whole base model.*--base"),
    "anything else": ({"layer.weight": torch.ones(4)}, r"1 tensors is named like.*the first is layer\.weight"),
    "nothing": ({}, "contains no tensors"),
    "other numbers": ({"unet:0:up": torch.ones(4)}, "numbers its layers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_used_is_refused_by_name(tmp_path: Path, what: str):
    tensors, said = REFUSED[what]
    with pytest.raises(FileError, match=rf"a\.safetensors .*{said}"):
        detect(written(tmp_path, tensors))


def test_what_is_no_safetensors_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    for blob, said in ((b"\n\n<!DOCTYPE html><html>", "a web page"), (b"\x80\x04\x95 pickled", "a pickle"),
                       (b"", "empty"), (b"\x10\0\0\0\0\0\0\0{", "is incomplete")):   # fmt: skip
        path.write_bytes(blob)
        with pytest.raises(FileError, match=said):
            detect(path)


# Files met in the wild: never part of the project, read where they lie

GOOD = {   # file → family, ‖ΔW‖ of all layers in float64
    "mvclab-ntust-course__course3-B11115019": ("sd1", 4.42),
    "Haseebae__Synthetic_dataset_generator_with_stable_diffusion": ("sd1", 14.59),
    "catundchat_lora": ("sd1", 4.7302), "vfph55__my_lora": ("sd2", 31.50), "IvanBy12__Imagenes": ("sd2", 19.07),
    "cloneofsimo_analog_svd_rank4": ("sd1", 1.6996), "cloneofsimo_lora_disney": ("sd1", 132.84),
    "timohavdk__new": ("sd1", 25.64),
}   # fmt: skip
BAD = {
    "wchesley_lora_illust.safetensors": "a web page",
    "Srikanth1408__Stable_Diffusion-Hackathon.safetensors": "22,090,344 of 23,401,064 bytes are missing",
    "invokeai_test_embedding.safetensors": "a textual inversion", "finegrain_cat-toy_learned_embeds.bin": "a pickle",
}   # fmt: skip


@pytest.mark.skipif(not WILD.is_dir(), reason="the files met in the wild are not here")
@pytest.mark.parametrize("name", GOOD)
def test_good_files_from_the_wild(name: str):
    family, norm = GOOD[name]
    adapters, contents = read_foreign(WILD / f"{name}.safetensors")
    assert contents.family == family
    total = sum(adapter.delta(torch.zeros(adapter.spec.shape)).double().square().sum().item() for adapter in adapters)
    assert total**0.5 == pytest.approx(norm, rel=2e-3)


@pytest.mark.skipif(not WILD.is_dir(), reason="the files met in the wild are not here")
@pytest.mark.parametrize("name", BAD)
def test_bad_files_from_the_wild(name: str):
    with pytest.raises(FileError, match=BAD[name]):
        detect(WILD / name)
