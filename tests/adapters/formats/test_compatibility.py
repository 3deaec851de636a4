"""Which tool loads a file: our verdict against the tools' rules, written down a second time in tool_rules.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from families import FAMILIES, configuration, small
from safetensors.torch import load_file
from tool_rules import TOOLS
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.compatibility import NO, PARTLY, YES, check_tools
from atelier.adapters.formats.export import export_mix
from atelier.adapters.formats.low_rank import LowRankLimits
from atelier.adapters.formats.module_names import canonical_name
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.formats.write_foreign import FORMS
from atelier.adapters.kinds.catalog import create_adapters

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
SPECS = [Spec(f"{BLOCK}.attn2.to_k", (12, 20)), Spec(f"{BLOCK}.attn1.to_out.0", (12, 12)),
         Spec(f"{BLOCK}.ff.net.2", (12, 16)), Spec("unet.down_blocks.1.resnets.0.conv1", (14, 6, 3, 3))]   # fmt: skip
WEIGHTS = {spec.name: torch.randn(spec.shape, generator=torch.Generator().manual_seed(len(spec.name)))
           for spec in SPECS}   # fmt: skip


def trained(kind: str, specs: list[Spec] = SPECS, **settings: Any) -> AdapterSet:
    torch.manual_seed(0)
    adapters = create_adapters(kind, {}, specs)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapters


@pytest.mark.parametrize("form", [form for form in FORMS if form != "native"])
@pytest.mark.parametrize("kind", ["lora", "lokr", "dora", "oft", "shira", "waveft"])
def test_every_tool_gets_what_the_verdict_promises(tmp_path: Path, kind: str, form: str):
    adapters = trained(kind)
    save_adapter(tmp_path / "a.safetensors", adapters, {"atelier.family": "sd1"})
    report = export_mix([(tmp_path / "a.safetensors", 1.0)], tmp_path / "b.safetensors", form,
                        weight_of=WEIGHTS.__getitem__, limits=LowRankLimits(energy=1.0, rank=20))   # fmt: skip
    tensors = load_file(tmp_path / "b.safetensors")
    for tool, rule in TOOLS.items():
        deltas, right = rule(tensors, WEIGHTS) or {}, 0
        for name, delta in deltas.items():
            expected = adapters[name].delta(WEIGHTS[name]).detach().double()
            right += torch.allclose(delta, expected, rtol=1e-3, atol=1e-5)
        answer = YES if right == len(SPECS) else PARTLY if deltas else NO
        assert report.loads[tool].answer == answer, tool
    if form in ("kohya", "diffusers"):
        assert report.loads["diffusers"].answer == YES
    elif kind in ("oft", "shira", "waveft") or form == "diff":
        assert report.loads["diffusers"].answer == NO


@pytest.fixture(scope="module", params=FAMILIES)
def topology(request: pytest.FixtureRequest) -> tuple[str, list[Spec]]:
    """A family, and every layer of its UNet and text encoders that is trained: true names, few channels."""
    def config(part: str) -> dict[str, Any]:
        return small(part, configuration(request.param, part))

    with torch.device("meta"):
        models: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(config("unet")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
        }   # fmt: skip
        if request.param == "sdxl":
            models["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2")))
    return request.param, find_targets(models, "all")


def test_a_kohya_file_reaches_every_layer_in_every_tool(topology: tuple[str, list[Spec]], tmp_path: Path):
    family, specs = topology
    adapters = trained("lora", specs, rank=1)
    save_adapter(tmp_path / "a.safetensors", adapters, {"atelier.family": family})
    report = export_mix([(tmp_path / "a.safetensors", 1.0)], tmp_path / "b.safetensors", "kohya")
    assert {tool: verdict.answer for tool, verdict in report.loads.items()} == dict.fromkeys([*TOOLS, "diffusers"], YES)
    tensors = load_file(tmp_path / "b.safetensors")
    weights = {canonical_name(spec.name): torch.zeros(spec.shape) for spec in specs}
    for tool, rule in TOOLS.items():
        deltas = rule(tensors, weights, family)
        assert deltas is not None and deltas.keys() == weights.keys(), tool
        for spec in specs:
            expected = adapters[spec.name].delta(weights[canonical_name(spec.name)]).detach().double()
            assert_close(deltas[canonical_name(spec.name)], expected, rtol=1e-5, atol=1e-7)


def test_diffusers_names_lose_an_upsampler_of_sdxl_in_a1111(topology: tuple[str, list[Spec]]):
    """What our files of SDXL were like once: 1 layer of all was dropped without a word, and the verdict said yes."""
    family, specs = topology
    weights = {spec.name: torch.zeros(spec.shape) for spec in specs if spec.name.startswith("unet.")}
    layers = {name: name.replace("unet.", "lora_unet_", 1).replace(".", "_") for name in weights}
    tensors = {f"{layer}.lora_{side}.weight": torch.ones((1, *weights[name].shape[1:]) if side == "down"
                                                         else (weights[name].shape[0], 1))
               for name, layer in layers.items() for side in ("up", "down")}   # fmt: skip
    lost = weights.keys() - (TOOLS["A1111"](tensors, weights, family) or {}).keys()
    verdict = check_tools({key: tuple(value.shape) for key, value in tensors.items()}, family)["A1111"]
    if family == "sdxl":
        assert lost == {"unet.up_blocks.0.upsamplers.0.conv"}
        assert verdict.answer == PARTLY and "lora_unet_up_blocks_0_upsamplers_0_conv" in verdict.reason
    else:
        assert not lost and verdict.answer == YES


LAYER = "lora_unet_" + BLOCK.removeprefix("unet.").replace(".", "_") + "_attn2_to_k"
OLD = BLOCK.removeprefix("unet.") + ".attn2.processor.to_k_lora"
PAIR = {".lora_up.weight": (12, 4), ".lora_down.weight": (4, 20)}
# What the tools' own loaders made of files: ComfyUI, A1111, InvokeAI, diffusers. Of DoRA by rows they take the names,
# but measure the lengths otherwise (tool_rules.py).
MEASURED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "kohya": ({f"{LAYER}{part}": shape for part, shape in PAIR.items()}, "yes yes yes yes"),
    "diffusers today": ({f"{BLOCK}.attn2.to_k.lora.{x}.weight": (4, 4) for x in ("up", "down")}, "no no no yes"),
    "diffusers 2023": ({f"unet.{OLD}.up.weight": (12, 4), f"unet.{OLD}.down.weight": (4, 20)}, "yes no no yes"),
    "2023 without prefix": ({f"{OLD}.up.weight": (12, 4), f"{OLD}.down.weight": (4, 20)}, "yes no no no"),
    "PEFT": ({f"base_model.model.{BLOCK.removeprefix('unet.')}.attn2.to_k.lora_{x}.weight": (4, 4) for x in "AB"},
             "no no no no"),
    "LoCon's core": ({f"{LAYER}{part}": shape for part, shape in {**PAIR, ".lora_mid.weight": (4, 4, 3, 3)}.items()},
                     "yes yes yes no"),
    "LoHa": ({f"{LAYER}.hada_w{i}_{x}": (4, 4) for i in (1, 2) for x in "ab"}, "yes yes yes no"),
    "LoKr": ({f"{LAYER}.lokr_w1": (4, 4), f"{LAYER}.lokr_w2": (4, 4)}, "yes yes yes no"),
    "full": ({f"{LAYER}.diff": (12, 20)}, "yes yes yes no"),
    "DoRA by columns": ({**{f"{LAYER}{part}": shape for part, shape in PAIR.items()}, f"{LAYER}.dora_scale": (1, 20)},
                        "yes yes yes partly"),
    "DoRA by rows": ({**{f"{LAYER}{part}": shape for part, shape in PAIR.items()}, f"{LAYER}.dora_scale": (12, 1)},
                     "partly partly partly partly"),
    "GLoRA": ({f"{LAYER}.{x}{i}.weight": (4, 4) for x in "ab" for i in (1, 2)}, "yes no no no"),
    "IA3": ({f"{LAYER}.weight": (12,), f"{LAYER}.on_input": ()}, "no yes yes no"),
    "IA3 of a convolution": ({f"{LAYER}.weight": (12,), f"{LAYER}.on_input": (),
                              "lora_unet_mid_block_resnets_0_conv1.weight": (14,),
                              "lora_unet_mid_block_resnets_0_conv1.on_input": ()}, "no partly no no"),
    "with text embeddings": ({**{f"{LAYER}{part}": shape for part, shape in PAIR.items()},
                            "bundle_emb.zwx.string_to_param.*": (2, 768)}, "partly yes no no"),
    "a bias alone": ({f"{LAYER}.diff_b": (12,)}, "yes no no no"),
    "LyCORIS's own names": ({f"lycoris_{LAYER.removeprefix('lora_unet_')}{part}": shape
                             for part, shape in PAIR.items()}, "yes no no no"),
    "a learned strength": ({**{f"{LAYER}{part}": shape for part, shape in PAIR.items()}, f"{LAYER}.scalar": ()},
                           "partly partly partly no"),
    "A1111's own strength": ({**{f"{LAYER}{part}": shape for part, shape in PAIR.items()}, f"{LAYER}.scale": ()},
                             "partly yes partly no"),
    "a bias beside a LoRA": ({**{f"{LAYER}{part}": shape for part, shape in PAIR.items()}, f"{LAYER}.diff_b": (12,)},
                             "yes partly partly no"),
    "a bias beside a difference": ({f"{LAYER}.diff": (12, 20), f"{LAYER}.diff_b": (12,)}, "yes yes yes no"),
    "DoRA of LoKr by columns": ({f"{LAYER}.lokr_w1": (4, 4), f"{LAYER}.lokr_w2": (3, 5),
                                 f"{LAYER}.dora_scale": (1, 20)}, "yes yes no no"),
    "faulty conversion": ({f"lora_unet_{LAYER.removeprefix('lora_')}_lora_up.weight": (12, 4),
                          f"lora_unet_{LAYER.removeprefix('lora_')}_lora_down.weight": (4, 20)}, "no no no no"),
}   # fmt: skip


@pytest.mark.parametrize("what", MEASURED)
def test_verdicts_are_what_was_measured_with_the_tools(what: str):
    shapes, answers = MEASURED[what]
    found = check_tools(shapes, "sd1")
    assert [found[tool].answer for tool in ("ComfyUI", "A1111", "InvokeAI", "diffusers")] == answers.split()
    assert all(verdict.reason for verdict in found.values() if verdict.answer != YES)


def test_forge_drops_a_file_of_many_unknown_names():
    few = {f"{BLOCK}.ff.net.2.lora_B.weight": (12, 4)}
    many = [f"unet.down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight" for i in range(13)]
    assert check_tools(few | dict.fromkeys(many[:12], (4, 4)), "sd1")["Forge"].answer == PARTLY
    assert check_tools(few | dict.fromkeys(many, (4, 4)), "sd1")["Forge"].answer == NO


def test_invoke_must_tell_the_base_model():
    shapes = {f"lora_unet_mid_block_resnets_0_conv1{part}": shape for part, shape in PAIR.items()}
    assert check_tools(shapes, "sd1")["InvokeAI"].answer == NO
