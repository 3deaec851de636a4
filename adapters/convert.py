"""To other tools' files. Foreign spellings live here and nowhere else.

A low-rank pair ``up [out, rank]``, ``down [rank, in·k·k]`` becomes two tensors in the layer's own dimensions:
``[out, rank(, 1, 1)]`` and ``[rank, in(, k, k)]``. The pair holds the scale already, whatever the kind; so kohya's
alpha is the rank, and alpha / rank is exactly 1 in every tool and every precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log2
from pathlib import Path

import torch
from torch import Tensor

from .base import Adapter, AdapterSet, Spec
from .files import data_hash, load_adapter, read_header, read_tensors, write_tensors
from .metadata import export_metadata

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMS = ("kohya", "diffusers", "native")

# Component → kohya's prefix. InvokeAI knows a lone text encoder as `lora_te_` only; two are numbered.
_ONE_ENCODER = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_TWO_ENCODERS = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_PREFIXES = {"embedded": _ONE_ENCODER, "sd1": _ONE_ENCODER, "sd2": _ONE_ENCODER, "sdxl": _TWO_ENCODERS}
_PARTS = {"kohya": ("lora_up.weight", "lora_down.weight"), "diffusers": ("lora_B.weight", "lora_A.weight")}
_KOHYA_LAYER = re.compile(
    r"lora_unet_(conv_in|conv_out|(time|add)_embedding|(down|up)_blocks_\d+|mid_block)(_\w+)?"
    r"|lora_te[12]?_text_model_\w+"
)
_TELLS_THE_FAMILY = re.compile(r"lora_unet_\w+_attn2_to_[kv]")


class ConvertError(ValueError):
    """An adapter that can't be written in the form asked for; the message says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, measured on the file itself."""

    form: str
    bytes: int
    layers: int
    rank: int          # the largest; 0 for a kind without one
    exact: bool        # every ΔW is the adapter's own, but for rounding its factors to the precision
    hash: str          # SHA-256 of the tensors: the name tools and sites know the file by
    max_error: float   # largest ‖ΔW in the file − ΔW‖ / ‖ΔW‖ of all layers


def export(path_in: Path, path_out: Path, form: str, dtype: str = "fp32") -> ExportReport:
    """Write a native adapter file in another form, read the result back and compare every layer.

    Args:
        path_in: the native file.
        path_out: where to write; an existing file is replaced.
        form: ``kohya`` (every tool), ``diffusers``, or ``native`` (as it is, without its private entries).
        dtype: ``fp32``, ``fp16`` or ``bf16``; a native file is always ``fp32``.

    Raises:
        FileError: ``path_in`` can't be read.
        ConvertError: there is no such form or precision, or the adapter does not fit it.
        OSError: ``path_out`` can't be written.
    """
    if form not in FORMS or dtype not in PRECISIONS:
        raise ConvertError(f"There is no export as {form!r} in {dtype!r}. The forms are {', '.join(FORMS)}; "
                           f"the precisions are {', '.join(PRECISIONS)}.")
    if form == "native" and dtype != "fp32":
        raise ConvertError(f"A native file keeps every digit. Export it in fp32, or as kohya in {dtype}.")
    header, adapters = read_header(path_in), load_adapter(path_in).double()
    family = header.metadata.get("atelier.family", "")
    tensors = _rounded(_foreign(adapters, form, family), dtype)
    write_tensors(path_out, tensors, export_metadata(header, tensors, form))
    errors = _errors(adapters, read_tensors(path_out), form, family, dtype)
    return ExportReport(
        form=form,
        bytes=path_out.stat().st_size,
        layers=len(adapters),
        rank=max(0 if (pair := adapter.factors()) is None else pair[0].shape[1] for adapter in adapters),
        exact=all(within for _, within in errors),
        hash=data_hash(path_out),
        max_error=max(error for error, _ in errors),
    )


def to_kohya(adapters: AdapterSet, family: str) -> dict[str, Tensor]:
    """Tensors under kohya's names for a base of ``family``; alpha is the largest rank, and always float32.

    All layers get the same alpha, because diffusers (0.42) loses those that differ from most others; a layer of
    lower rank makes up for it in ``up``.

    Raises:
        ConvertError: an unknown family, a part of the pipeline it lacks, or a kind without exact factors.
    """
    pairs = {_layer_name(adapter.spec, "kohya", family): _pair(adapter) for adapter in adapters}
    alpha = max(len(down) for _, down in pairs.values())
    tensors: dict[str, Tensor] = {}
    for layer, (up, down) in pairs.items():
        tensors |= {
            f"{layer}.lora_up.weight": up * (len(down) / alpha),
            f"{layer}.lora_down.weight": down,
            f"{layer}.alpha": torch.tensor(float(alpha)),
        }
    return tensors


def to_diffusers(adapters: AdapterSet) -> dict[str, Tensor]:
    """Tensors under the names that diffusers' ``load_lora_weights`` reads, where the scale is always 1.

    Raises:
        ConvertError: a kind without exact factors.
    """
    tensors: dict[str, Tensor] = {}
    for adapter in adapters:
        layer, (up, down) = _layer_name(adapter.spec, "diffusers", ""), _pair(adapter)
        tensors |= {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
    return tensors


def check_kohya(tensors: Mapping[str, Tensor]) -> list[str]:
    """Say what keeps ``tensors`` from being the plain kohya LoRA that every tool loads."""
    problems: list[str] = []
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.partition(".")
        if part not in (*_PARTS["kohya"], "alpha") or not _KOHYA_LAYER.fullmatch(layer):
            problems.append(f"{key} is no plain LoRA tensor on a diffusers block name")
        else:
            layers.setdefault(layer, {})[part] = tensor
    problems += [f"{layer}: {why}" for layer, parts in layers.items() if (why := _layer_problem(parts))]
    if not any(_TELLS_THE_FAMILY.fullmatch(layer) for layer in layers):
        problems.append("no attn2_to_k or attn2_to_v layer, from which tools tell the base model")
    if len({layer.startswith("lora_te_") for layer in layers if layer.startswith("lora_te")}) > 1:
        problems.append("lora_te_ beside lora_te1_ or lora_te2_: one text encoder and two at once")
    return problems


def _layer_problem(parts: Mapping[str, Tensor]) -> str:
    if missing := {*_PARTS["kohya"], "alpha"} - parts.keys():
        return f"{', '.join(sorted(missing))} missing"
    up, down, alpha = (parts[name] for name in (*_PARTS["kohya"], "alpha"))
    rank, kernel = down.shape[0], down.shape[2:]
    if len(kernel) not in (0, 2) or up.shape[1:] != (rank, *(1 for _ in kernel)):
        return f"up {list(up.shape)} does not fit down {list(down.shape)}"
    if alpha.shape != () or not 0 < alpha.item() < inf:
        return "alpha is not one positive number"
    return "" if up.isfinite().all() and down.isfinite().all() else "some values are not finite"


def _foreign(adapters: AdapterSet, form: str, family: str) -> dict[str, Tensor]:
    if form == "native":
        return adapters.tensors()
    if family not in _PREFIXES:
        raise ConvertError(f"The adapter was made for a base of the family {family!r}; "
                           f"files can be written for {', '.join(_PREFIXES)}.")
    if form == "diffusers":
        return to_diffusers(adapters)
    tensors = to_kohya(adapters, family)
    if problems := check_kohya(tensors):
        raise ConvertError(f"Other tools would refuse this adapter as a kohya file: {problems[0]}. "
                           "The native form takes any adapter.")
    return tensors


def _layer_name(spec: Spec, form: str, family: str) -> str:
    component, _, name = spec.name.partition(".")
    if component.startswith("text_encoder") and not name.startswith("text_model."):
        name = f"text_model.{name}"   # transformers 5 dropped this level from its modules; files keep it
    if form == "diffusers":
        return f"{component}.{name}"
    prefix = _PREFIXES.get(family, {}).get(component)
    if prefix is None:
        raise ConvertError(f"Kohya files for {family!r} have no place for {component} ({spec.name}).")
    return prefix + name.replace(".", "_")


def _pair(adapter: Adapter) -> tuple[Tensor, Tensor]:
    """``up`` and ``down`` of one adapter in the layer's own dimensions, each with memory of its own."""
    factors = adapter.factors()
    if factors is None:
        raise ConvertError(f"{adapter.title} is not a low-rank pair, and other tools read only those. "
                           "Export it in the native form.")
    up, down = (factor.detach() for factor in factors)
    # A power of two moved from one factor to the other changes no digit, and keeps both away from the ends of
    # fp16's range, where it has few digits or none.
    ratio = (down.abs().max() / up.abs().max()).item()
    shift = 2.0 ** round(log2(ratio) / 2) if 0 < ratio < inf else 1.0
    ones = (1 for _ in adapter.spec.shape[2:])
    return (up * shift).reshape(*up.shape, *ones), (down / shift).reshape(-1, *adapter.spec.shape[1:])


def _rounded(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    rounded = {key: value.to(PRECISIONS[dtype]).contiguous() if value.dtype == torch.float64 else value
               for key, value in tensors.items()}
    for key, value in rounded.items():
        if not value.isfinite().all():
            raise ConvertError(f"{key} holds values that {dtype} cannot. Export in fp32; if that fails too, "
                               "the adapter is broken and must be trained again.")
    return rounded


def _errors(
    adapters: AdapterSet, written: Mapping[str, Tensor], form: str, family: str, dtype: str
) -> list[tuple[float, bool]]:
    """For each layer the relative error of ΔW, and whether rounding explains it."""
    if form == "native":
        own = adapters.tensors()
        same = all(torch.equal(own[key], written[key].to(own[key].dtype)) for key in own)
        return [(0.0 if same else inf, same)]
    errors: list[tuple[float, bool]] = []
    for adapter in adapters:
        layer, ours = _layer_name(adapter.spec, form, family), adapter.factors()
        assert ours is not None
        up, down = (written[f"{layer}.{part}"].double().flatten(1) for part in _PARTS[form])
        alpha = written.get(f"{layer}.alpha")
        errors.append(_error(ours, (up if alpha is None else up * alpha.item() / len(down), down), dtype))
    return errors


def _error(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], dtype: str) -> tuple[float, bool]:
    (up, down), (their_up, their_down) = ours, theirs
    gap = _norm(torch.cat([their_up, -up], 1), torch.cat([their_down, down]))
    size = _norm(up, down)
    limits = torch.finfo(PRECISIONS[dtype])
    # Rounding moves a value by less than eps of itself, or than the smallest number where that is more.
    least = limits.smallest_normal * limits.eps
    a, b = (x.norm().item() for x in theirs)
    da, db = (limits.eps * x.norm().item() + least * x.numel() ** 0.5 for x in theirs)
    return (gap / size if size else 0.0 if gap == 0 else inf), gap <= da * b + a * db + da * db


def _norm(up: Tensor, down: Tensor) -> float:
    """‖up @ down‖ without forming the product, which is as large as the base model's own weight: ‖QR‖ = ‖R‖."""
    left, right = (torch.linalg.qr(factor, mode="r").R for factor in (up, down.T))
    return torch.linalg.matrix_norm(left @ right.T).item()
