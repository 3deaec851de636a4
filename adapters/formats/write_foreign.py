"""To other tools' files. Foreign spellings live here, in ``module_names.py`` and ``detect.py``, and nowhere else.

A low-rank pair ``up [out, rank]``, ``down [rank, in·k·k]`` becomes two tensors in the layer's own dimensions:
``[out, rank(, 1, 1)]`` and ``[rank, in(, k, k)]``. The pair holds the scale already, whatever the kind; so kohya's
alpha is the rank, and alpha / rank is exactly 1 in every tool and every precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf, log2
from types import MappingProxyType

import torch
from torch import Tensor

from atelier.adapters.core.base import Spec
from atelier.adapters.core.family import FAMILIES, SD1
from atelier.adapters.formats.low_rank import Pair, WeightChange
from atelier.adapters.formats.module_names import canonical_name, to_original, to_underscores

FORMS = ("kohya", "diffusers", "lycoris", "comfyui", "diff", "native")

_SDXL_ATTENDED = (0, 1)   # up blocks with attention
_KOHYA_PARTS = ("lora_up.weight", "lora_down.weight")
_KOHYA_LAYER = re.compile(
    r"lora_unet_(conv_in|conv_out|(time|add)_embedding|(down|up)_blocks_\d+|mid_block)(_\w+)?"
    r"|lora_te[12]?_text_model_\w+"
)
_SDXL_LAYER = re.compile(
    r"lora_unet_((in|out)put_blocks_\d+_\d_\w+|middle_block_\d_\w+|(time_embed|label_emb_0)_\d|out_2)"
    r"|lora_te[12]_text_model_\w+"
)
_TELLS_THE_FAMILY = re.compile(r"lora_unet_\w+_attn2_to_[kv]")


class ConvertError(ValueError):
    """An adapter that can't be written in the form asked for; the message says why and what to do instead."""


def check_family(family: str) -> None:
    """See that files can be written for a base family.

    Raises:
        ConvertError: they can't.
    """
    if family not in FAMILIES:
        raise ConvertError(f"The adapter was made for a base model of the family {family!r}, but files can be written "
                           f"only for {', '.join(FAMILIES)}.")


def to_kohya(pairs: Mapping[Spec, Pair], family: str) -> dict[str, Tensor]:
    """Tensors under kohya's names for a base of ``family``; alpha is the largest rank, and always float32.

    All layers get the same alpha, because diffusers (0.42) loses those that differ from most others; a layer of
    lower rank makes up for it in ``up``.

    Raises:
        ConvertError: an unknown family, or a part of the pipeline it lacks.
    """
    layers = {kohya_name(spec.name, family): _shaped(spec, pair) for spec, pair in pairs.items()}
    alpha = max(len(down) for _, down in layers.values())
    tensors: dict[str, Tensor] = {}
    for layer, (up, down) in layers.items():
        tensors |= {
            f"{layer}.lora_up.weight": up * (len(down) / alpha),
            f"{layer}.lora_down.weight": down,
            f"{layer}.alpha": torch.tensor(float(alpha)),
        }
    return tensors


def to_diffusers(
    pairs: Mapping[Spec, Pair], lengths: Mapping[Spec, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Tensors under the names that diffusers' ``load_lora_weights`` reads, where the scale is always 1.

    With ``lengths [rows]``, of all layers or none, it reads them as DoRA.
    """
    tensors: dict[str, Tensor] = {}
    for spec, pair in pairs.items():
        layer, (up, down) = canonical_name(spec.name), _shaped(spec, pair)
        tensors |= {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
        if spec in lengths:   # PEFT's shape
            around = (1, -1, 1, 1) if len(spec.shape) > 2 else (-1,)
            # Of text encoders diffusers (0.42) finds them under PEFT's name inside the model alone.
            ending = "" if layer.startswith("unet.") else ".weight"
            tensors[f"{layer}.lora_magnitude_vector{ending}"] = lengths[spec].reshape(around)
    return tensors


def to_diff(change: WeightChange) -> dict[str, Tensor]:
    """One layer as the whole change of its weight: the part of LyCORIS's ``full`` or ``norm``."""
    part = "diff" if len(change.spec.shape) > 1 else "w_norm"
    return {part: change.matrix().reshape(change.spec.shape)}


def check_kohya(tensors: Mapping[str, Tensor], family: str = SD1.name) -> list[str]:
    """Say what keeps ``tensors`` from being the plain kohya LoRA that every tool loads for this family."""
    problems: list[str] = []
    pattern = _SDXL_LAYER if FAMILIES[family].original_unet_names else _KOHYA_LAYER
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.partition(".")
        if part not in (*_KOHYA_PARTS, "alpha") or not pattern.fullmatch(layer):
            problems.append(f"{key} is not a plain LoRA tensor with a block name that every tool knows")
        else:
            layers.setdefault(layer, {})[part] = tensor
    problems += [f"{layer}: {why}" for layer, parts in layers.items() if (why := _layer_problem(parts))]
    if not any(_TELLS_THE_FAMILY.fullmatch(layer) for layer in layers):
        problems.append("no attn2_to_k or attn2_to_v layer, by which tools identify the base model")
    if len({layer.startswith("lora_te_") for layer in layers if layer.startswith("lora_te")}) > 1:
        problems.append("both lora_te_ and lora_te1_ or lora_te2_: one text encoder and two at once")
    return problems


def _layer_problem(parts: Mapping[str, Tensor]) -> str:
    if missing := {*_KOHYA_PARTS, "alpha"} - parts.keys():
        return f"{', '.join(sorted(missing))} missing"
    up, down, alpha = (parts[name] for name in (*_KOHYA_PARTS, "alpha"))
    rank, kernel = down.shape[0], down.shape[2:]
    if len(kernel) not in (0, 2) or up.shape[1:] != (rank, *(1 for _ in kernel)):
        return f"up {list(up.shape)} does not match down {list(down.shape)}"
    if alpha.shape != () or not 0 < alpha.item() < inf:
        return "alpha is not a single positive number"
    return "" if up.isfinite().all() and down.isfinite().all() else "some values are not finite"


def kohya_name(name: str, family: str) -> str:
    """A module's name as kohya writes it, with its prefix.

    Layers of SDXL's UNet are called as in Stability's own code (sd-scripts does so too): A1111 reads diffusers' names
    by the plan of Stable Diffusion 1, and loses an upsampler of SDXL's without a word.

    Raises:
        ConvertError: the family has no such component.
    """
    component, _, path = canonical_name(name).partition(".")
    prefix = FAMILIES[family].kohya_prefixes.get(component) if family in FAMILIES else None
    if prefix is None:
        raise ConvertError(f"Kohya files for {family!r} can't hold {component} ({name}).")
    if component == "unet" and FAMILIES[family].original_unet_names:
        try:
            path = to_original(path, _SDXL_ATTENDED)
        except KeyError:
            raise ConvertError(f"Stable Diffusion XL has no {name}, so a kohya file can't hold it.") from None
    return prefix + to_underscores(path)


def _shaped(spec: Spec, pair: Pair) -> Pair:
    """``up`` and ``down`` in the layer's own dimensions, each with memory of its own."""
    up, down = (factor.detach() for factor in pair)
    # A power of two moved from one factor to the other changes no digit, and keeps both away from the ends of
    # fp16's range, where it has few digits or none.
    ratio = (down.abs().max() / up.abs().max()).item()
    shift = 2.0 ** round(log2(ratio) / 2) if 0 < ratio < inf else 1.0
    ones = (1 for _ in spec.shape[2:])
    return (up * shift).reshape(*up.shape, *ones), (down / shift).reshape(-1, *spec.shape[1:])
