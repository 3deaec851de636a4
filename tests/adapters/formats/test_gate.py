"""The gate for foreign files: every tensor of a layer that is used counts, or the file is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.formats.detect import detect
from atelier.adapters.formats.native import content_hash, load_adapter, save_adapter
from atelier.adapters.formats.read_foreign import read_foreign
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.cli.inspect import inspect_file

Tensors = dict[str, Tensor]
TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TO_V = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
KOHYA = "lora_unet_" + TO_V.replace(".", "_")
CONV = "lora_unet_mid_block_resnets_0_conv1"


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1


def kohya(layer: str = KOHYA, rows: int = 12, columns: int = 192, rank: int = 4) -> Tensors:
    return {f"{layer}.lora_up.weight": random(rows, rank), f"{layer}.lora_down.weight": random(rank, columns),
            f"{layer}.alpha": torch.tensor(2.0)}   # fmt: skip


def peft(**ranks: int) -> Tensors:
    """Two layers as PEFT calls them, ``to_q`` and ``to_v``."""
    layers = {"to_q": TO_Q, "to_v": TO_V}
    return {f"base_model.model.{layers[name]}.lora_{side}.weight": random(*(rank, 192)[:: 1 if side == "A" else -1])
            for name, rank in ranks.items() for side in "AB"}   # fmt: skip


def written(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None, name: str = "a") -> Path:
    save_file(tensors, folder / f"{name}.safetensors", metadata)
    return folder / f"{name}.safetensors"


def scales(adapters: AdapterSet) -> dict[str, float]:
    """What multiplies up @ down, by the last word of each layer's name."""
    found = {}
    for adapter in adapters:
        up, down = (adapter.get_buffer(part).flatten(1).double() for part in ("up", "down"))
        delta = adapter.delta(torch.zeros(adapter.spec.shape)).double()
        found[adapter.spec.name.rpartition(".")[2]] = (delta.norm() / (up @ down).norm()).item()
    return found


# Values

HOSTILE: dict[str, Callable[[Tensors], None]] = {
    "NaN": lambda t: t[f"{KOHYA}.lora_up.weight"][3].fill_(torch.nan),
    "infinity": lambda t: t[f"{KOHYA}.lora_down.weight"][0].fill_(-torch.inf),
    "a value beyond reason": lambda t: t[f"{KOHYA}.lora_down.weight"][0].fill_(1e9),
    "alpha beyond reason": lambda t: t.update({f"{KOHYA}.alpha": torch.tensor(4e30)}),
    "alpha is NaN": lambda t: t.update({f"{KOHYA}.alpha": torch.tensor(torch.nan)}),
    "8 bits": lambda t: t.update({f"{KOHYA}.lora_up.weight": torch.full((12, 4), torch.nan).to(torch.float8_e4m3fn)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_values_that_are_no_ordinary_numbers_are_refused_by_name(tmp_path: Path, what: str):
    tensors = kohya()
    HOSTILE[what](tensors)
    with pytest.raises(FileError, match=rf"a\.safetensors is damaged: {KOHYA}\.(lora_up|lora_down|alpha)"):
        read_foreign(written(tmp_path, tensors))


def test_an_update_thousands_of_times_the_weights_is_refused(tmp_path: Path):
    tensors = {key: value if key.endswith("alpha") else value * 1e4 for key, value in kohya().items()}
    with pytest.raises(FileError, match=r"attn2\.to_v is thousands of times larger"):
        read_foreign(written(tmp_path, tensors))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("kind", ["lora", "dora", "shira"])
def test_our_own_files_go_through_the_same_gate(tmp_path: Path, kind: str, value: float):
    adapters = create_adapters(kind, {}, [Spec(f"unet.{TO_V}", (12, 192))])
    with torch.no_grad():
        next(adapters.parameters()).view(-1)[5] = value
    save_adapter(tmp_path / "a.safetensors", adapters, {})
    with pytest.raises(FileError, match=rf"a\.safetensors is damaged: unet\.{TO_V}\.\w+ contains values"):
        load_adapter(tmp_path / "a.safetensors")


def test_a_setting_beyond_reason_is_refused(tmp_path: Path):
    adapters = create_adapters("lora", {"alpha": 4e30}, [Spec(f"unet.{TO_V}", (12, 192))])
    save_adapter(tmp_path / "a.safetensors", adapters, {})
    with pytest.raises(FileError, match=r"a\.safetensors is damaged: its setting alpha is 4\.0e\+30"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2,
                                   torch.float8_e4m3fn])   # fmt: skip
@pytest.mark.parametrize("value", [torch.nan, torch.inf, None])
def test_a_look_at_a_file_names_what_is_not_finite(tmp_path: Path, dtype: torch.dtype, value: float | None):
    tensors = {key: tensor.to(dtype) for key, tensor in kohya().items()}
    key = f"{KOHYA}.lora_down.weight"
    if value is not None:
        wide = tensors[key].float()
        wide[1, 3] = value
        tensors[key] = wide.to(dtype)
    found = inspect_file(written(tmp_path, tensors))
    damaged = found["damaged"]
    assert not damaged or not any(answer.startswith("yes") for answer in found["loads in"].values())
    assert damaged == ("" if tensors[key].float().isfinite().all() else f"{key} contains NaN or infinity")


# Fit

MISFITS: dict[str, tuple[Tensors, str]] = {
    "ranks differ": (kohya() | {f"{KOHYA}.lora_up.weight": random(12, 8)}, "lora_up.weight"),
    "alpha is empty": (kohya() | {f"{KOHYA}.alpha": torch.zeros(0)}, "alpha"),
    "alpha is a row": (kohya() | {f"{KOHYA}.alpha": torch.ones(2)}, "alpha"),
    "a factor is empty": (kohya() | {f"{KOHYA}.lora_up.weight": torch.zeros(12, 0)}, "lora_up.weight"),
    "a factor is a row": (kohya() | {f"{KOHYA}.lora_down.weight": random(192)}, "lora_down.weight"),
    "the kernel is in the wrong factor": ({f"{CONV}.lora_up.weight": random(12, 4, 3, 3),
                                           f"{CONV}.lora_down.weight": random(4, 12, 1, 1)}, "lora_up.weight"),
    "no kernel for a convolution": ({f"{CONV}.lora_up.weight": random(12, 4, 1, 1),
                                     f"{CONV}.lora_down.weight": random(4, 12, 1, 1)}, "lora_down.weight"),
    "lengths of neither side": (kohya() | {f"{KOHYA}.dora_scale": torch.ones(5, 1)}, "dora_scale"),
    "a core of another rank": ({f"{CONV}.lora_up.weight": random(12, 4, 1, 1),
                                f"{CONV}.lora_down.weight": random(4, 12, 1, 1),
                                f"{CONV}.lora_mid.weight": random(4, 3, 3, 3)}, "lora_mid.weight"),
    "Hadamard factors": ({f"{KOHYA}.hada_w1_a": random(12, 4), f"{KOHYA}.hada_w1_b": random(4, 192),
                          f"{KOHYA}.hada_w2_a": random(12, 4), f"{KOHYA}.hada_w2_b": random(4, 191)}, "hada_w2_b"),
    "Kronecker factors": ({f"{KOHYA}.lokr_w1": random(4, 4), f"{KOHYA}.lokr_w2_a": random(3, 2),
                           f"{KOHYA}.lokr_w2_b": random(3, 48)}, "lokr_w2_b"),
    "bias": (kohya() | {f"{KOHYA}.diff_b": random(5)}, "diff_b"),
}   # fmt: skip


@pytest.mark.parametrize("what", MISFITS)
def test_tensors_that_do_not_fit_each_other_are_refused_by_name(tmp_path: Path, what: str):
    tensors, part = MISFITS[what]
    with pytest.raises(FileError, match=rf"a\.safetensors can't be used: \S+\.{part} has the shape \[.*\], but "):
        detect(written(tmp_path, tensors))


INSIDE: dict[str, tuple[Tensors, str]] = {
    "unknown": (kohya() | {f"{KOHYA}.gate": torch.ones(1)}, f"contains {KOHYA}.gate, and Atelier does not know"),
    "of PEFT": (peft(to_q=4) | {f"base_model.model.{TO_Q}.lora_C.weight": torch.ones(1)}, "lora_C.weight, and"),
    "sparse bias": (kohya() | {f"{KOHYA}.bias_values": torch.ones(1)}, "bias_values, and Atelier"),
    "of another algorithm": (kohya() | {f"{KOHYA}.hada_t1": random(4, 4, 3, 3)}, "hada_t1, which can't be part"),
    "two at once": (kohya() | {f"{KOHYA}.diff": random(12, 192)}, "diff, which can't be part of a LoRA"),
    "twice": (kohya() | {f"unet.{TO_V}.lora_B.weight": random(12, 4)}, f"contains unet.{TO_V} twice"),
    "half of a core": ({f"{CONV}.hada_t1": random(4, 4, 3, 3)} | {
        f"{CONV}.hada_w{i}_{side}": random(4, 12) for i in (1, 2) for side in "ab"}, "hada_t1 has the shape"),
    "both halves": ({f"{KOHYA}.lokr_w1": random(4, 4), f"{KOHYA}.lokr_w1_a": random(4, 2),
                     f"{KOHYA}.lokr_w2": random(3, 48)}, "lokr_w1_a has the shape"),
}   # fmt: skip


@pytest.mark.parametrize("what", INSIDE)
def test_a_tensor_inside_a_layer_is_never_passed_over(tmp_path: Path, what: str):
    tensors, said = INSIDE[what]
    with pytest.raises(FileError, match=said):
        detect(written(tmp_path, tensors))


@pytest.mark.parametrize("part", ["dora_scale", "scalar", "scale"])
def test_a_layer_that_lost_what_the_others_have_is_refused(tmp_path: Path, part: str):
    extra = torch.ones(12, 1) if part == "dora_scale" else torch.tensor(0.5)
    tensors = kohya() | {f"{KOHYA}.{part}": extra} | kohya("lora_unet_" + TO_Q.replace(".", "_"))
    with pytest.raises(FileError, match=rf"is incomplete: it contains {KOHYA}\.{part}, but unet\.{TO_Q} has no"):
        detect(written(tmp_path, tensors))


def test_a_lost_alpha_is_said(tmp_path: Path):
    tensors = kohya() | kohya("lora_unet_" + TO_Q.replace(".", "_"))
    del tensors[f"{KOHYA}.alpha"]
    adapters, contents = read_foreign(written(tmp_path, tensors))
    assert scales(adapters) == pytest.approx({"to_v": 1.0, "to_q": 0.5}, rel=1e-5)
    assert any("1 of 2 layers contain no alpha" in note for note in contents.notes)


def test_half_a_layer_is_left_out_and_said(tmp_path: Path):
    tensors = kohya() | {"lora_unet_" + TO_Q.replace(".", "_") + ".lora_up.weight": random(12, 8)}
    adapters, contents = read_foreign(written(tmp_path, tensors))
    assert [adapter.spec.name for adapter in adapters] == [f"unet.{TO_V}"]
    assert any("1 of 4 tensors are not used" in note for note in contents.notes)


# Strength

@pytest.mark.parametrize("number", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_factors_of_whole_numbers_are_refused(tmp_path: Path, number: torch.dtype):
    tensors = kohya() | {f"{KOHYA}.lora_up.weight": (random(12, 4) * 100).to(number)}
    with pytest.raises(FileError, match=r"can't be used: \S+lora_up\.weight contains whole numbers"):
        read_foreign(written(tmp_path, tensors))


def test_a_scale_and_a_learned_scalar_count(tmp_path: Path):
    """LyCORIS's ``scalar`` multiplies; A1111's ``scale`` takes the place of alpha / rank."""
    adapters, _ = read_foreign(written(tmp_path, kohya() | {f"{KOHYA}.scalar": torch.tensor(0.25)}))
    assert scales(adapters) == pytest.approx({"to_v": 0.5 * 0.25}, rel=1e-5)
    adapters, _ = read_foreign(written(tmp_path, kohya() | {f"{KOHYA}.scale": torch.tensor(3.0)}))
    assert scales(adapters) == pytest.approx({"to_v": 3.0}, rel=1e-5)


@pytest.mark.parametrize("alpha", [torch.tensor(0.0), torch.zeros(1)])
def test_alpha_zero_is_the_rank_and_said(tmp_path: Path, alpha: Tensor):
    adapters, contents = read_foreign(written(tmp_path, kohya() | {f"{KOHYA}.alpha": alpha}))
    assert scales(adapters) == pytest.approx({"to_v": 1.0}, rel=1e-5)
    assert any("ComfyUI and A1111 turn such layers off" in note for note in contents.notes)
    assert "ComfyUI and A1111 turn such layers off" in inspect_file(tmp_path / "a.safetensors")["notes"]


@pytest.mark.parametrize("alpha", [torch.tensor(2), torch.tensor([2.0]), torch.tensor(2.0, dtype=torch.float16)])
def test_alpha_of_any_precision_and_of_one_dimension(tmp_path: Path, alpha: Tensor):
    adapters, _ = read_foreign(written(tmp_path, kohya() | {f"{KOHYA}.alpha": alpha}))
    assert scales(adapters) == pytest.approx({"to_v": 0.5}, rel=1e-5)


# What a configuration says → the scale of to_q (rank 4) and of to_v (rank 8), by PEFT's formula.
CONFIGURED = {
    "plain": ({"r": 4, "lora_alpha": 8}, 2.0, 2.0),
    "rank pattern": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"attn2.to_v": 8}}, 2.0, 1.0),
    "stabilized": ({"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"to_v": 8}}, 4.0, 8 / 8**0.5),
    "alpha pattern": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_v": 2}}, 2.0, 0.5),
    "both": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"to_v": 8}, "alpha_pattern": {".*attn2.to_v": 2}}, 2.0, 0.25),
    "whole names": ({"r": 8, "lora_alpha": 8, "rank_pattern": {TO_Q: 4}}, 2.0, 1.0),
    "the first counts": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_.*": 4, "to_v": 2}}, 1.0, 1.0),
}   # fmt: skip


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("what", CONFIGURED)
def test_each_layer_has_the_strength_its_configuration_says(tmp_path: Path, what: str, bom: bytes):
    config, to_q, to_v = CONFIGURED[what]
    (tmp_path / "adapter_config.json").write_bytes(bom + json.dumps({"peft_type": "LORA", **config}).encode())
    adapters, contents = read_foreign(written(tmp_path, peft(to_q=4, to_v=8), name="adapter_model"))
    assert scales(adapters) == pytest.approx({"to_q": to_q, "to_v": to_v}, rel=1e-5)
    assert not any("alpha" in note for note in contents.notes)


@pytest.mark.parametrize("prefix", ["unet.", ""])
@pytest.mark.parametrize("what", CONFIGURED)
def test_the_same_in_the_header_as_diffusers_writes_it(tmp_path: Path, what: str, prefix: str):
    config, to_q, to_v = CONFIGURED[what]
    tensors = {key.replace("base_model.model.", "unet."): value for key, value in peft(to_q=4, to_v=8).items()}
    said = {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in config.items()})}
    adapters, _ = read_foreign(written(tmp_path, tensors, said))
    assert scales(adapters) == pytest.approx({"to_q": to_q, "to_v": to_v}, rel=1e-5)


def test_a_strength_is_taken_from_the_nearest_place(tmp_path: Path):
    """A tensor, then the file's own header, then the configuration beside it; and that only if it is this file's."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 40}))
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 20})}
    alpha = {f"base_model.model.{TO_Q}.alpha": torch.tensor(2.0)}
    for name, tensors, metadata, scale in (
        ("adapter_model", peft(to_q=4), {}, 10.0), ("adapter_model", peft(to_q=4), header, 5.0),
        ("adapter_model", peft(to_q=4) | alpha, header, 0.5), ("other", peft(to_q=4), {}, 1.0),
        ("other", peft(to_q=4), header, 5.0),
    ):   # fmt: skip
        adapters, _ = read_foreign(written(tmp_path, tensors, metadata, name))
        assert scales(adapters) == pytest.approx({"to_q": scale}, rel=1e-5)
    plain = kohya()
    del plain[f"{KOHYA}.alpha"]
    assert scales(read_foreign(written(tmp_path, plain, name="adapter_model"))[0]) == pytest.approx({"to_v": 1.0})


UNREADABLE = {
    "damaged": ("{", "adapter_config.json is damaged"), "a list": ("[]", "adapter_config.json is damaged"),
    "no rank": ('{"lora_alpha": 8}', "r in adapter_config.json is 'None', but it must be a number"),
    "rank 0": ('{"r": 0, "lora_alpha": 8}', "r in adapter_config.json is '0'"),
    "not a number": ('{"r": 4, "lora_alpha": NaN}', "lora_alpha in adapter_config.json is 'nan'"),
    "no end": ('{"r": 4, "lora_alpha": 1' + "0" * 400 + "}", "lora_alpha in adapter_config.json is '100"),
    "text": ('{"r": 4, "lora_alpha": "8"}', "lora_alpha in adapter_config.json is '8'"),
    "a pattern without end": ('{"r": 4, "lora_alpha": 8, "rank_pattern": {"(a+)+b": 8}}', "is too complicated"),
    "no pattern": ('{"r": 4, "lora_alpha": 8, "rank_pattern": {"(": 8}}', "is not a valid pattern"),
    "a residual base": ('{"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa_niter_4"}', "weights were changed"),
    "a lost magnitude": ('{"r": 4, "lora_alpha": 8, "use_dora": true}', "attn1.to_q has no magnitude, which it must"),
    "a lost bias": ('{"r": 4, "lora_alpha": 8, "lora_bias": true}', "attn1.to_q has no up_bias, which it must have"),
    "another LoRA": ('{"r": 4, "lora_alpha": 8, "use_qalora": true}', "a kind of LoRA that Atelier can't use"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_configuration_that_can_not_be_used_is_no_reason_to_guess(tmp_path: Path, what: str):
    text, said = UNREADABLE[what]
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(FileError, match=rf"adapter_model\.safetensors .*{said}"):
        detect(written(tmp_path, peft(to_q=4), name="adapter_model"))


def test_a_configuration_beside_another_file_is_said_not_to_be_used(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    adapters, contents = read_foreign(written(tmp_path, peft(to_q=4), name="rex"))
    assert scales(adapters) == pytest.approx({"to_q": 1.0}, rel=1e-5)
    assert any("adapter_config.json in the same folder is not used" in note for note in contents.notes)
    assert not any("adapter_config" in note for note in detect(written(tmp_path, kohya(), name="fox")).notes)


def test_strength_0_is_said(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 0}))
    for tensors, name in ((peft(to_q=4), "adapter_model"), (kohya() | {f"{KOHYA}.scalar": torch.tensor(0.0)}, "b")):
        adapters, contents = read_foreign(written(tmp_path, tensors, name=name))
        assert set(scales(adapters).values()) == {0.0}
        assert any("1 of its 1 layers have strength 0" in note for note in contents.notes)


@pytest.mark.parametrize("prefix", [
    "module.", "base_model.model.base_model.model.", "unet.base_model.model.", "base_model.model.unet.",
    "base_model.model.module."])
def test_a_model_that_was_wrapped_when_it_was_saved_is_read_with_its_configuration(tmp_path: Path, prefix: str):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "rank_pattern": {TO_V: 8}}))
    tensors = {key.replace("base_model.model.", prefix): value for key, value in peft(to_q=4, to_v=8).items()}
    adapters, _ = read_foreign(written(tmp_path, tensors, name="adapter_model"))
    assert scales(adapters) == pytest.approx({"to_q": 2.0, "to_v": 1.0}, rel=1e-5)


# Identity

def test_adapters_are_the_same_only_if_all_that_counts_is(tmp_path: Path):
    def known(tensors: Tensors, metadata: dict[str, str] | None = None) -> str:
        return content_hash(read_foreign(written(tmp_path, tensors, metadata))[0])

    first = known(kohya())
    assert known(dict(reversed(kohya().items())), {"modelspec.trigger_phrase": "zwx"}) == first
    other = "lora_unet_" + TO_Q.replace(".", "_")
    flat = {f"{KOHYA}.lora_up.weight": random(12, 4), f"{KOHYA}.lora_down.weight": random(4, 192)}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    dotted = {key.replace(KOHYA, f"unet.{TO_V}").replace("lora_up", "lora_B").replace("lora_down", "lora_A"): value
              for key, value in flat.items()}   # fmt: skip
    different = [
        first, known(kohya(other)), known(kohya() | {f"{KOHYA}.alpha": torch.tensor(4.0)}), known(flat),
        known({key: value.half() for key, value in kohya().items()}), known(dotted, header),
        known({f"{KOHYA}.lora_up.weight": random(12, 4).reshape(16, 3), f"{KOHYA}.lora_down.weight": random(3, 192)}),
    ]   # fmt: skip
    assert len(set(different)) == len(different)
    assert known(dotted) == known(flat)


def test_what_was_read_is_what_is_kept(tmp_path: Path):
    """A scale from a configuration is in our own file too."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_rslora": True}))
    adapters, _ = read_foreign(written(tmp_path, peft(to_q=4), name="adapter_model"))
    save_adapter(tmp_path / "own.safetensors", adapters, {})
    again = load_adapter(tmp_path / "own.safetensors")
    weight = torch.zeros(192, 192)
    assert_close(next(iter(again)).delta(weight), next(iter(adapters)).delta(weight), rtol=0, atol=0)
    assert content_hash(again) == content_hash(adapters)
