"""The original (ldm) layout of single-file checkpoints: from the parts of a diffusers pipeline to one dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from atelier.adapters.core.family import FAMILIES
from atelier.adapters.formats import module_names

_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
              "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}   # fmt: skip


def to_original(parts: Mapping[str, Mapping[str, Tensor]], family: str) -> dict[str, Tensor]:
    """Rename and reshape the weights of a diffusers pipeline.

    Args:
        parts: ``unet``, ``vae``, ``text_encoder`` (and ``text_encoder_2``) → their state dictionaries.
        family: name of a family that has single-file checkpoints.
    """
    attended = {int(found[1]) for key in parts["unet"] if (found := re.match(r"up_blocks\.(\d+)\.attentions", key))}
    tensors = {f"model.diffusion_model.{module_names.to_original(name, attended)}": value
               for name, value in parts["unet"].items()}   # fmt: skip
    levels = 1 + max(int(found[1]) for key in parts["vae"] if (found := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    tensors |= {f"first_stage_model.{name}": value for name, value in _vae(parts["vae"], levels)}
    for encoder in FAMILIES[family].text_encoders:
        # transformers 5 dropped the level `text_model.` from some of its text encoders; files keep it.
        plain = {key.removeprefix("text_model."): value for key, value in parts[encoder.component].items()}
        renamed = _open_clip(plain) if encoder.open_clip else {f"text_model.{k}": v for k, v in plain.items()}
        tensors |= {encoder.original_prefix + name: value for name, value in renamed.items()}
    return tensors


def _vae(tensors: Mapping[str, Tensor], levels: int) -> Iterator[tuple[str, Tensor]]:
    for key, value in tensors.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name)
        name = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", name)
        name = re.sub(r"decoder\.up_blocks\.(\d+)\.resnets\.",
                      lambda found: f"decoder.up.{levels - 1 - int(found[1])}.block.", name)   # fmt: skip
        name = re.sub(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
                      lambda found: f"decoder.up.{levels - 1 - int(found[1])}.upsample.", name)   # fmt: skip
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        if "mid_block.attentions.0." in name:
            for old, new in _VAE_ATTENTION.items():
                name = name.replace(f"mid_block.attentions.0.{old}.", f"mid.attn_1.{new}.")
            # What diffusers computes as a linear layer was a 1×1 convolution.
            value = value[:, :, None, None] if value.dim() == 2 else value
        yield name, value


def _open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names: queries, keys and values in one matrix, the projection transposed."""
    renamed = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
    }
    if "text_projection.weight" in tensors:
        renamed["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    for key, value in tensors.items():
        found = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if not found:
            continue
        layer, name, kind = f"transformer.resblocks.{found[1]}", found[2], found[3]
        if name in _OPEN_CLIP:
            renamed[f"{layer}.{_OPEN_CLIP[name]}.{kind}"] = value
        elif name == "self_attn.q_proj":
            rows = [tensors[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            renamed[f"{layer}.attn.in_proj_{kind}"] = torch.cat(rows)
    return renamed
