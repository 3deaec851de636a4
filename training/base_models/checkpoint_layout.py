"""Does a single-file checkpoint hold every weight that its family's models have? Told from its header alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from atelier.adapters.core.family import Family
from atelier.adapters.formats.safetensors_header import TensorEntry
from atelier.training.base_models.base_info import BaseError

TENSORS = "tensors.json"   # name → shape of every weight of a family in the original layout
UNET, VAE = "model.diffusion_model.", "first_stage_model."
_FULL = "Use the full checkpoint."
# How tools store weights that must be multiplied by scales or looked up in tables first.
_QUANTIZED = re.compile(r"(^|\.)(scaled_fp8|scale_weight|weight_scale|input_scale|absmax|quant_map|SCB|qweight|qzeros)"
                        r"$|\.quant_state\b|\.comfy_quant$")   # fmt: skip
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
        if plain_shape(entry.shape) != plain_shape(tuple(shape)):
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


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the trailing ones: 1×1 convolutions and linear layers hold the same weights."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
