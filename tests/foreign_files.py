"""Adapter files of PEFT's and LyCORIS's own making on small twins of the model families, and what the library merges.

For each file the changes of weights and biases come from the library itself, in float64: never from code of ours.
"""
# The libraries' own types are those of numbers and of modules that torch's stubs don't tell apart.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lycoris.modules.boft as boft
import lycoris.modules.diag_oft as diag_oft
import lycoris.modules.dylora as dylora
import lycoris.modules.full as full
import lycoris.modules.glora as glora
import lycoris.modules.ia3 as ia3
import lycoris.modules.locon as locon
import lycoris.modules.loha as loha
import lycoris.modules.lokr as lokr
import lycoris.modules.norms as norms
import peft
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from families import configuration, small
from safetensors.torch import load_file, save_file
from tool_rules import ldm_name
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Change = tuple[Tensor, Tensor | None]   # of a weight, and of its bias
Changes = dict[str, Change]             # by our names, component first

# A few layers of every sort, and all of them.
FEW = (r".*(down_blocks\.1\.(attentions\.0\.(proj_in|transformer_blocks\.0)|resnets\.0)|up_blocks\.0\.upsamplers"
       r"|conv_in|layers\.0\.self_attn).*")
ALL = r".*"
_LINEAR = r"(to_q|to_k|to_v|to_out\.0|ff\.net\.2|ff\.net\.0\.proj|q_proj|out_proj|fc1)"
_SQUARE = r"attn1\.(to_q|to_k|to_v)"
_CONVOLUTIONS = r"(conv1|conv2|conv_shortcut|proj_in|samplers\.0\.conv)"


@cache
def models(family: str) -> dict[str, nn.Module]:
    """A small UNet and small text encoders with random weights, in float64."""
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel.from_config(small("unet", configuration(family, "unet")))}   # fmt: skip
    words = {"vocab_size": 99, "max_position_embeddings": 9}
    parts["text_encoder"] = CLIPTextModel(CLIPTextConfig(**small("text_encoder", configuration(family, "text_encoder"))
                                                         | words))   # fmt: skip
    if family == "sdxl":
        second = small("text_encoder_2", configuration(family, "text_encoder_2")) | words
        parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**second))
    return {name: part.double().requires_grad_(False) for name, part in parts.items()}


@cache
def part_of(family: str, component: str, where: str) -> nn.Module:
    """A twin without the modules that ``where`` does not match: quick to copy and to wrap. It can't be called."""
    whole = nn.Module()
    for name, module in models(family)[component].named_modules():
        if re.fullmatch(where, name) and not list(module.children()):
            inner = whole
            *levels, last = name.split(".")
            for level in levels:
                if level not in inner._modules:
                    inner.add_module(level, nn.Module())
                inner = inner.get_submodule(level)
            inner.add_module(last, module)
    return whole


def weights(family: str) -> dict[str, Tensor]:
    """Every weight and bias of the twins by our names, biases with ``.bias``."""
    found = {}
    for component, model in models(family).items():
        for name, module in model.named_modules():
            for part, end in (("weight", ""), ("bias", ".bias")):
                if isinstance(value := getattr(module, part, None), Tensor):
                    found[f"{ours(component, name)}{end}"] = value.detach()
    return found


def ours(component: str, name: str) -> str:
    """Our name for a module of the twins."""
    if component != "unet" and not name.startswith("text_model."):
        name = f"text_model.{name}"
    return f"{component}.{name}"


# PEFT

BASES = {"sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2": "stabilityai/stable-diffusion-2-1",
         "sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}   # fmt: skip


def _targets(where: str, *roles: str) -> str:
    return f"{where}({'|'.join(roles)})$"


def _peft(make: Callable[..., Any], roles: tuple[str, ...], **settings: Any) -> Callable[[str], Any]:
    return lambda where: make(target_modules=_targets(where, *roles), **settings)


_ANY, _DENSE = (_LINEAR, _CONVOLUTIONS), (_LINEAR,)
PEFT: dict[str, Callable[[str], Any]] = {
    "LoRA": _peft(peft.LoraConfig, _ANY, r=4, lora_alpha=8),
    "LoRA, stabilized, patterns": _peft(peft.LoraConfig, _ANY, r=4, lora_alpha=8, use_rslora=True,
                                        rank_pattern={"to_k": 2, "conv1": 6}, alpha_pattern={"mid_block.*to_q": 16}),
    "LoRA with biases": _peft(peft.LoraConfig, (r"(to_out\.0|conv1)",), r=4, lora_alpha=8, lora_bias=True),
    "LoRA and the layers' biases": _peft(peft.LoraConfig, _ANY, r=4, lora_alpha=8, bias="lora_only"),
    "LoRA and whole modules": _peft(peft.LoraConfig, _DENSE, r=4, lora_alpha=8, modules_to_save=["conv_in"]),
    "DoRA": _peft(peft.LoraConfig, _ANY, r=4, lora_alpha=8, use_dora=True),
    "AdaLoRA": _peft(peft.AdaLoraConfig, _DENSE, init_r=6, target_r=4, lora_alpha=8, total_step=10),
    "LoHa": _peft(peft.LoHaConfig, _ANY, r=4, alpha=8, rank_pattern={"to_k": 2}, alpha_pattern={"to_v": 3}),
    "LoHa with cores": _peft(peft.LoHaConfig, _ANY, r=4, alpha=8, use_effective_conv2d=True),
    "LoKr": _peft(peft.LoKrConfig, _ANY, r=4, alpha=8),
    "LoKr of two products": _peft(peft.LoKrConfig, _ANY, r=2, alpha=8, decompose_both=True, decompose_factor=4),
    "LoKr with cores": _peft(peft.LoKrConfig, _ANY, r=2, alpha=8, use_effective_conv2d=True),
    "LoKr, whole": _peft(peft.LoKrConfig, _ANY, r=400, alpha=800),
    "OFT": _peft(peft.OFTConfig, _ANY, oft_block_size=4),
    "OFT, exact": _peft(peft.OFTConfig, _ANY, oft_block_size=8, use_cayley_neumann=False),
    "OFT, constrained": _peft(peft.OFTConfig, _ANY, oft_block_size=4, coft=True, eps=0.05),
    "OFT, shared": _peft(peft.OFTConfig, _ANY, oft_block_size=4, block_share=True, num_cayley_neumann_terms=3),
    "BOFT": _peft(peft.BOFTConfig, _ANY, boft_block_size=4),
    "IA3": _peft(peft.IA3Config, _ANY, feedforward_modules=r".*(ff\.net\.2|conv1)"),
    "SHiRA": _peft(peft.ShiraConfig, _DENSE, r=4),
    "WaveFT": _peft(peft.WaveFTConfig, _DENSE, n_frequency=128),
    "WaveFT, longer": _peft(peft.WaveFTConfig, _DENSE, n_frequency=99, wavelet_family="sym4", random_loc_seed=5),
    "WaveFT, direct": _peft(peft.WaveFTConfig, _DENSE, n_frequency=99, use_idwt=False, scaling=3.0),
    "MiSS": _peft(peft.MissConfig, _DENSE, r=6),
    "MiSS, bat": _peft(peft.MissConfig, _DENSE, r=4, init_weights="bat"),
    "MiSS, mini": _peft(peft.MissConfig, _DENSE, r=4, mini_r=8, init_weights="mini"),
    "RandLoRA": _peft(peft.RandLoraConfig, _DENSE, r=8),
    "VeRA": _peft(peft.VeraConfig, _DENSE, r=4),
    "HRA": _peft(peft.HRAConfig, _ANY, r=4, init_weights=False),
    "HRA, orthogonal": _peft(peft.HRAConfig, _ANY, r=4, apply_GS=True, init_weights=False),
    "FourierFT": _peft(peft.FourierFTConfig, _DENSE, n_frequency=64),
    "GraLoRA": _peft(peft.GraloraConfig, _DENSE, r=4, gralora_k=2),
    "GraLoRA, hybrid": _peft(peft.GraloraConfig, _DENSE, r=4, gralora_k=2, hybrid_r=3),
    "HiRA": _peft(peft.HiraConfig, _ANY, r=4),
    "C3A": _peft(peft.C3AConfig, _DENSE, block_size=32),
    "normalizations": _peft(peft.LNTuningConfig, (r"norm\d",)),
}   # fmt: skip


def write_peft(folder: Path, kind: str, family: str, where: str = FEW, component: str = "unet") -> tuple[Path, Changes]:
    """A file that PEFT saves, with random values in all that it trains, and what PEFT makes of it."""
    base = part_of(family, component, where)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of sizes that it adjusts
        model = peft.get_peft_model(copy.deepcopy(base), PEFT[kind](where)).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "ranknum" not in name:   # in float32, for that is what a file holds
                    parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).float())
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point() and ("vera_" in name or "randlora_" in name):
                    buffer.copy_(buffer.float())
        model.peft_config["default"].base_model_name_or_path = BASES[family]
        model.save_pretrained(folder)
        merged = model.merge_and_unload()
    path = folder / "adapter_model.safetensors"
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return path, _differences(component, base, merged)


def _differences(component: str, base: nn.Module, merged: nn.Module) -> Changes:
    found: Changes = {}
    after = dict(merged.named_modules())
    for name, module in base.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, Tensor):
            continue
        change = after[name].weight.detach() - weight
        shift = None if bias is None else after[name].bias.detach() - bias
        if change.any() or (shift is not None and shift.any()):
            found[ours(component, name)] = change, shift if shift is not None and shift.any() else None
    return found


# LyCORIS

Make = Callable[[str, nn.Module], Any]
LYCORIS: dict[str, Make] = {
    "LoCon": lambda n, m: locon.LoConModule(n, m, 1, 4, 3.0),
    "LoCon, stabilized": lambda n, m: locon.LoConModule(n, m, 1, 4, 3.0, rs_lora=True),
    "LoCon with cores": lambda n, m: locon.LoConModule(n, m, 1, 4, 3.0, use_tucker=True),
    "LoCon with a scalar": lambda n, m: locon.LoConModule(n, m, 1, 4, 3.0, use_scalar=True),
    "DoRA by rows": lambda n, m: locon.LoConModule(n, m, 1, 4, 3.0, weight_decompose=True),
    "DoRA by columns": lambda n, m: locon.LoConModule(n, m, 1, 4, 3.0, weight_decompose=True, wd_on_out=False),
    "LoHa": lambda n, m: loha.LohaModule(n, m, 1, 3, 2.0),
    "LoHa with cores": lambda n, m: loha.LohaModule(n, m, 1, 3, 2.0, use_tucker=True),
    "LoHa with a scalar": lambda n, m: loha.LohaModule(n, m, 1, 3, 2.0, use_scalar=True),
    "DoRA of LoHa": lambda n, m: loha.LohaModule(n, m, 1, 3, 2.0, weight_decompose=True),
    "LoKr": lambda n, m: lokr.LokrModule(n, m, 1, 2, 3.0, factor=8),
    "LoKr of two products": lambda n, m: lokr.LokrModule(n, m, 1, 1, 3.0, factor=8, decompose_both=True),
    "LoKr, whole": lambda n, m: lokr.LokrModule(n, m, 1, 100000, 3.0, factor=4),
    "LoKr with a scalar": lambda n, m: lokr.LokrModule(n, m, 1, 2, 3.0, factor=8, use_scalar=True),
    "DoRA of LoKr": lambda n, m: lokr.LokrModule(n, m, 1, 2, 3.0, factor=8, weight_decompose=True),
    "GLoRA": lambda n, m: glora.GLoRAModule(n, m, 1, 2, 3.0),
    "DyLoRA": lambda n, m: dylora.DyLoraModule(n, m, 1, 8, 3.0, block_size=4),
    "full": lambda n, m: full.FullModule(n, m),
    "IA3": lambda n, m: ia3.IA3Module(n, m, 1),
    "IA3 on inputs": lambda n, m: ia3.IA3Module(n, m, 1, train_on_input=True),
    "diag-OFT": lambda n, m: diag_oft.DiagOFTModule(n, m, 1, 4),
    "diag-OFT, constrained": lambda n, m: diag_oft.DiagOFTModule(n, m, 1, 4, constraint=1e-3),
    "diag-OFT, rescaled": lambda n, m: diag_oft.DiagOFTModule(n, m, 1, 4, rescaled=True),
    "BOFT": lambda n, m: boft.ButterflyOFTModule(n, m, 1, -1),
    "BOFT, constrained, rescaled": lambda n, m: boft.ButterflyOFTModule(n, m, 1, -1, constraint=1e-3, rescaled=True),
    "norms": lambda n, m: norms.NormModule(n, m),
}   # fmt: skip


def kohya(component: str, name: str, family: str) -> str:
    """A module's name in files of kohya's scripts; SDXL's UNet in Stability's words."""
    path = ours(component, name).partition(".")[2]
    if component == "unet":
        return "lora_unet_" + (ldm_name(path, family) if family == "sdxl" else path).replace(".", "_")
    prefix = {"text_encoder": "lora_te1_" if family == "sdxl" else "lora_te_", "text_encoder_2": "lora_te2_"}[component]
    return prefix + path.replace(".", "_")


def write_lycoris(path: Path, kind: str, family: str, where: str = FEW) -> tuple[Path, Changes]:
    """A file as LyCORIS saves it, over the UNet and the text encoders, and what LyCORIS makes of it."""
    torch.manual_seed(1)
    roles = _targets(where, r"norm\d") if kind == "norms" else _targets(where, *_ANY)
    tensors: dict[str, Tensor] = {}
    changes: Changes = {}
    for component, model in models(family).items():
        for name, module in model.named_modules():
            usable = isinstance(module, nn.GroupNorm | nn.LayerNorm if kind == "norms" else nn.Linear | nn.Conv2d)
            if usable and re.fullmatch(roles, name):
                layer = kohya(component, name, family)
                own, changes[ours(component, name)] = _lycoris_layer(kind, layer, module)
                tensors |= {f"{layer}.{key}": value for key, value in own.items()}
    save_file(tensors, path, {"ss_network_module": "lycoris.kohya"})
    return path, changes


@torch.no_grad()
def _lycoris_layer(kind: str, layer: str, module: nn.Module) -> tuple[dict[str, Tensor], Change]:
    theirs = LYCORIS[kind](layer, module).double()
    for parameter in theirs.parameters():
        parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).float())
    state = theirs.state_dict() if "scalar" in kind else theirs.custom_state_dict() or theirs.state_dict()
    if kind == "full":   # not applied to the module, it holds the difference alone
        state = {"diff": theirs.weight} if theirs.bias is None else {"diff": theirs.weight, "diff_b": theirs.bias}
    own = {key: value.detach().clone().contiguous() for key, value in state.items()}
    own = {key: value.float() if value.is_floating_point() else value for key, value in own.items()}
    weight = module.weight.detach()
    if kind == "DyLoRA":   # of its own ranks it draws one at random; its file is a plain LoRA of the largest
        up, down = own["lora_up.weight"].double(), own["lora_down.weight"].double()
        return own, ((up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * own["alpha"].item() / len(down), None)
    if isinstance(theirs, loha.LohaModule | lokr.LokrModule):   # as they forward; their own merging scales twice
        after = weight + theirs.get_weight(weight.shape) * theirs.scalar
        after = theirs.apply_weight_decompose(after, 1.0) if theirs.wd else after
        return own, (after.reshape(weight.shape) - weight, None)
    with patch.object(Tensor, "float", Tensor.double):   # OFT turns back to float32 in the middle
        after, bias = theirs.get_merged_weight(1.0, weight.shape)
    shift = None if bias is None else bias - module.bias.detach()
    return own, (after.double() - weight, shift)


def largest_error(found: Mapping[str, Change], expected: Mapping[str, Change]) -> float:
    """Of all layers, ‖found − expected‖ / ‖expected‖ of the weights and of the biases."""
    worst = 0.0
    for name, (change, shift) in expected.items():
        pairs = [(found[name][0], change)] if change.any() else []
        if shift is not None:
            assert found[name][1] is not None, f"the bias of {name} is lost"
            pairs.append((found[name][1], shift))
        worst = max(worst, *(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs))
    return worst
