"""Does a base model hold every weight that its models have? Told from headers, without loading.

A single file is compared with the models of its family, a diffusers folder with what its configurations describe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from atelier.adapters.core.family import Family
from atelier.adapters.formats.safetensors_header import TensorEntry, cached_safetensors_header
from atelier.training.base_models.base_info import PACKED_UNET, BaseError
from atelier.training.base_models.weight_files import WeightFiles

TENSORS = "tensors.json"   # name → shape of every weight of a family in the original layout
UNET, VAE = "model.diffusion_model.", "first_stage_model."
_FULL = "Use the full checkpoint."
# How tools store weights that must be multiplied by scales or looked up in tables first.
_QUANTIZED = re.compile(r"(^|\.)(scaled_fp8|scale_weight|weight_scale|input_scale|absmax|quant_map|SCB|qweight|qzeros)"
                        r"$|\.quant_state\b|\.comfy_quant$")   # fmt: skip
_MAX_DEPTH = 200   # transformer layers of one block; Stable Diffusion XL has 20
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# Names of the VAE's attention in folders of diffusers before 0.18, which it still reads.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"\b(query|key|value|proj_attn)\b(?=\.(?:weight|bias)$)")
Shape = tuple[int, ...]
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def check_layout(base: str, tensors: Mapping[str, TensorEntry], family: Family, folder: Path, *, vae: bool) -> None:
    """Refuse a checkpoint that would not load whole; ``vae`` says whether its own VAE is needed.

    Raises:
        BaseError: weights are missing, quantized or of another shape; the first is named.
    """
    if scales := next(filter(_QUANTIZED.search, tensors), ""):
        raise BaseError(f"{base} has quantized weights with scales of their own, such as {scales[-80:]}, which can't "
                        "be read. Use the version in fp16.")
    expected: dict[str, list[int]] = json.loads((folder / TENSORS).read_text(encoding="utf-8"))
    names = {without_text_model(name, family): entry for name, entry in tensors.items()}
    for name, shape in expected.items():
        if name.startswith(VAE) and not vae:
            continue
        entry = names.get(without_text_model(name, family))
        if entry is None:
            raise BaseError(_missing(base, name, len(expected.keys() - tensors.keys()), family))
        if _plain(entry.shape) != _plain(tuple(shape)):
            raise BaseError(f"{base} has {name} of shape {list(entry.shape)}, but in {family.title} models it is "
                            f"{shape}. Use another model: this one has a different architecture.")
        if entry.dtype not in _FLOATS:
            raise BaseError(f"{base} has weights in the number format {entry.dtype}, such as {name}, which can't be "
                            "read. Use the version in fp16.")


def without_text_model(name: str, family: Family) -> str:
    """The name of a weight without the level ``text_model.``, which some tools leave out of CLIP's weights."""
    for encoder in family.text_encoders:
        if not encoder.open_clip and name.startswith(encoder.original_prefix):
            return encoder.original_prefix + name.removeprefix(encoder.original_prefix).removeprefix("text_model.")
    return name


def _missing(base: str, name: str, count: int, family: Family) -> str:
    if name.startswith(UNET):
        return (f"{base} lacks {count} weights of {family.title} models, such as {name}. It is a smaller model made "
                "from one, such as SSD-1B, or it is damaged. Use its diffusers folder, or download it again.")
    part = "VAE" if name.startswith(VAE) else "text encoder"
    return f"{base} lacks weights of its {part}, such as {name}. {_FULL}"


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the trailing ones: 1×1 convolutions and linear layers hold the same weights."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def check_tensors(base: str, folder: Path, weights: Mapping[str, WeightFiles]) -> None:
    """Refuse a folder whose weights would not fill its models.

    Args:
        base: what the person called it.
        folder: the folder.
        weights: the files of each part that is loaded.

    Raises:
        BaseError: weights of a part are missing or of another shape than its configuration says; one is named.
    """
    for part, files in weights.items():
        if PACKED_UNET in files.names:   # in codes, with a layout of its own
            continue
        stored = {_name(part, name): _plain(entry.shape) for file in files.names
                  for name, entry in cached_safetensors_header(folder / part / file).tensors.items()}   # fmt: skip
        expected = _described(base, folder, part)
        missing = [name for name in expected if name not in stored]
        if missing:
            raise BaseError(f"{base} lacks {len(missing)} of the {len(expected)} weights of its {part}, such as "
                            f"{missing[0]}. Download it again.")
        wrong = next((name for name, shape in expected.items() if stored[name] != shape), "")
        if wrong:
            raise BaseError(f"{base} has the weight {wrong} of its {part} in the shape {list(stored[wrong])}, but its "
                            f"config.json describes {list(expected[wrong])}. Download it again.")


def check_tokenizers(base: str, folder: Path, names: tuple[str, ...]) -> None:
    """Refuse a folder without the vocabulary of a tokenizer.

    Raises:
        BaseError: there is none.
    """
    for name in names:
        if not any(all((folder / name / file).is_file() for file in files) for files in _TOKENIZER_FILES):
            raise BaseError(f"{base} has no {name}/vocab.json and merges.txt, so prompts can't be read. Download it "
                            "again.")


def _described(base: str, folder: Path, part: str) -> dict[str, Shape]:
    """The weights that a part's configuration describes."""
    try:
        return _expected(part, (folder / part / "config.json").read_text(encoding="utf-8"))
    except Exception as error:   # what the libraries make of numbers that don't go together
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BaseError(f"{base} has a {part}/config.json that describes no model ({reason[:100]}). Download it "
                        "again.") from None


@lru_cache(maxsize=64)
def _expected(part: str, config: str) -> dict[str, Shape]:
    """Every weight of a part by its name, from its configuration: most folders share a few of these."""
    values = json.loads(config)
    if _depth(values.get("layers_per_block")) * _depth(values.get("transformer_layers_per_block")) > _MAX_DEPTH:
        raise ValueError("too many layers")
    with torch.device("meta"):
        model = _empty(part, values)
    return {_name(part, name): _plain(tuple(value.shape)) for name, value in model.named_parameters()}


def _depth(layers: Any) -> int:
    return max((number for number in layers if isinstance(number, int)), default=1) if isinstance(layers, list) else (
        layers if isinstance(layers, int) else 1)   # fmt: skip


def _empty(part: str, config: dict[str, Any]) -> torch.nn.Module:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if part in ("unet", "vae"):
        kind: Any = UNet2DConditionModel if part == "unet" else AutoencoderKL
        return kind.from_config(config)
    text: Any = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
    return text(CLIPTextConfig.from_dict(config))


def _name(part: str, name: str) -> str:
    """A weight's name as the libraries have it now: older folders spell some otherwise."""
    if part == "vae":
        return _OLD_NAME.sub(lambda found: _OLD_ATTENTION[found[1]], name)
    return name.removeprefix("text_model.") if part.startswith("text_encoder") else name
