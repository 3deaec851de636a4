"""Write an adapter, or several as one, for another tool; then read the file back and say how true it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.adapter_info import COMFYUI_LENGTHS_ENTRY
from atelier.adapters.formats.compatibility import YES, Verdict, check_tools
from atelier.adapters.formats.export_metadata import export_metadata
from atelier.adapters.formats.layer_parts import ending_of
from atelier.adapters.formats.low_rank import (
    EXACT,
    LowRankLimits,
    Pair,
    WeightChange,
    WeightOf,
    nearest_low_rank,
    weight_changes,
)
from atelier.adapters.formats.lycoris import ImportedLora
from atelier.adapters.formats.module_names import canonical_name, has_no_bias
from atelier.adapters.formats.native import (
    AdapterHeader,
    data_hash,
    load_adapter,
    read_header,
    read_tensors,
    write_tensors,
)
from atelier.adapters.formats.read_foreign import read_foreign
from atelier.adapters.formats.write_foreign import (
    FORMS,
    ConvertError,
    check_family,
    check_kohya,
    kohya_name,
    to_diff,
    to_diffusers,
    to_kohya,
)
from atelier.adapters.formats.write_lycoris import dora_factors, lengths_as_they_come, own_tensors, plain_tensors
from atelier.adapters.kinds.dora import Dora

_WHOLE_FORMS = ("lycoris", "comfyui", "diff")   # that can hold every change
# Few values on which much depends: they are float32 in every file.
_ALWAYS_EXACT = (".alpha", ".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".rescale",
                 ".on_input")   # fmt: skip
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WeightedFile = tuple[Path, float]   # a native file and its strength


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, measured on the file itself."""

    form: str
    bytes: int
    layers: int
    rank: int            # the largest; 0 for a form without one
    exact: bool          # every ΔW is the adapter's own, but for rounding to the precision
    hash: str            # SHA-256 of the tensors: the name tools and sites know the file by
    max_error: float     # largest ‖ΔW in the file − ΔW‖ / ‖ΔW‖ of all layers
    mean_error: float    # mean of them
    energy: float        # share of ‖ΔW‖² of all layers together that the file keeps
    loads: dict[str, Verdict]      # tool → whether it loads the file
    left_out: tuple[str, ...] = ()   # changes the form has no place for


def export(path_in: Path, path_out: Path, form: str, dtype: str = "fp32") -> ExportReport:
    """Write one native adapter whose update needs no base model; see :func:`export_mix`."""
    return export_mix([(path_in, 1.0)], path_out, form, dtype)


def export_mix(
    parts: Sequence[WeightedFile], path_out: Path, form: str, dtype: str = "fp32", *,
    limits: LowRankLimits = EXACT, weight_of: WeightOf | None = None, recipe: bool = False,
) -> ExportReport:   # fmt: skip
    """Write native adapter files as one in another form, read the result back and compare every layer.

    Args:
        parts: native files and their strengths.
        path_out: where to write; an existing file is replaced.
        form: ``kohya`` (a LoRA, for every tool), ``diffusers``, ``lycoris`` (each layer in its own algorithm),
            ``comfyui`` (the same by the rules of ComfyUI and Forge), ``diff`` (the whole ΔW), or ``native`` (one
            adapter as it is, without its private entries).
        dtype: ``fp32``, ``fp16`` or ``bf16``; a native file is always ``fp32``.
        limits: how much of a ΔW to keep, and in which rank; exact low-rank pairs are cut only where this asks for it.
        weight_of: the base model's weights, for kinds whose update depends on them.
        recipe: whether the file says how it was trained, which can hold folder names and prompts.

    Raises:
        FileError: a part can't be read.
        ConvertError: there is no such form or precision, or the adapters don't fit it.
        OSError: ``path_out`` can't be written.
    """
    if form not in FORMS or dtype not in PRECISIONS:
        raise ConvertError(f"Atelier can't export as {form!r} in {dtype!r}. The formats are {', '.join(FORMS)}; the "
                           f"precisions are {', '.join(PRECISIONS)}.")
    headers = [read_header(path) for path, _ in parts]
    if form == "native":
        return _native(parts, headers[0], path_out, dtype, recipe)
    family = _family(headers)
    mix = Mix(tuple((load_adapter(path).double(), strength) for path, strength in parts))
    weights = weight_of or _no_weights
    tensors, left_out = _foreign(mix, weights, form, family, limits)
    tensors = _rounded(tensors, dtype)
    write_tensors(path_out, tensors, export_metadata(_joined(headers), tensors, form, recipe=recipe))
    # Normalizations have a place in the whole forms alone; of a layer whose bias was left out, the weight is there.
    expected = (change for change in weight_changes(mix, weights)
                if form in _WHOLE_FORMS or len(change.spec.shape) > 1)   # fmt: skip
    errors, ranks = _errors(expected, weights, path_out, dtype)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    return ExportReport(
        form=form, bytes=path_out.stat().st_size, layers=len(errors), hash=data_hash(path_out), left_out=left_out,
        rank=max(ranks, default=0),
        exact=all(error.rounding for error in errors) and not left_out,
        max_error=max(error.relative for error in errors),
        mean_error=sum(error.relative for error in errors) / len(errors),
        energy=1 - sum(error.gap**2 for error in errors) / (sum(error.size**2 for error in errors) or 1),
        loads=check_tools(shapes, family, comfyui_lengths=form == "comfyui"),
    )   # fmt: skip


def _no_weights(name: str) -> Tensor:
    raise ConvertError(f"The update of {name} depends on the base model's weights, but no base model was given. Name "
                       "the one it was made for, or export in the native format.")


def _family(headers: Sequence[AdapterHeader]) -> str:
    families = {header.info.family for header in headers}
    if len(families) > 1:
        raise ConvertError(f"The adapters were made for different base models ({', '.join(sorted(families))}), but one "
                           "file can hold only one family. Export them separately.")
    family = families.pop()
    check_family(family)
    return family


def _joined(headers: Sequence[AdapterHeader]) -> AdapterHeader:
    """One header for all: the first one's, under all their names."""
    first = headers[0]
    if len(headers) == 1:
        return first
    names = [header.info.name or "?" for header in headers]
    triggers = [header.info.trigger for header in headers if header.info.trigger]
    info = replace(first.info, name=" + ".join(names), trigger=", ".join(triggers), merged_from=", ".join(names))
    return replace(first, metadata={**first.metadata, **info.to_metadata()})


def _native(
    parts: Sequence[WeightedFile], header: AdapterHeader, path_out: Path, dtype: str, recipe: bool
) -> ExportReport:
    if dtype != "fp32":
        raise ConvertError(f"A native file always has full precision. Export it in fp32, or choose kohya in {dtype}.")
    if len(parts) > 1 or parts[0][1] != 1:
        raise ConvertError("A native file holds one adapter at strength 1. Export several as kohya, or merge them into "
                           "a new adapter first.")
    adapters = load_adapter(parts[0][0])
    tensors = {key: value.contiguous() for key, value in adapters.tensors().items()}
    write_tensors(path_out, tensors, export_metadata(header, tensors, "native", recipe=recipe))
    written = read_tensors(path_out)
    same = all(torch.equal(value, written[key]) for key, value in tensors.items())
    pairs = [adapter.factors() for adapter in adapters]
    return ExportReport(
        form="native", bytes=path_out.stat().st_size, layers=len(adapters), hash=data_hash(path_out), exact=same,
        rank=max((0 if pair is None else pair[1].shape[0] for pair in pairs), default=0),
        max_error=0.0 if same else inf, mean_error=0.0 if same else inf, energy=1.0 if same else 0.0,
        loads={"Atelier": Verdict(YES)},
    )   # fmt: skip


def _foreign(
    mix: Mix, weight_of: WeightOf, form: str, family: str, limits: LowRankLimits
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if form in _WHOLE_FORMS:
        return _whole(mix, weight_of, form, family)
    layers = _single_layers(mix)
    pairs: dict[Spec, Pair] = {}
    lengths: dict[Spec, Tensor] = {}
    left_out = []
    for change in weight_changes(mix, weight_of):
        if change.bias is not None or len(change.spec.shape) == 1:
            left_out.append(change.spec.name)
        if len(change.spec.shape) == 1:
            continue
        layer, spec = layers.get(change.spec.name), change.spec
        if form == "diffusers" and layer is not None and _is_dora(layer):
            own = dora_factors(layer, weight_of(spec.name))
            if own is not None:   # its lengths are those of rows
                change, lengths[spec] = WeightChange(spec, pair=own[0]), own[1]
        pairs[spec] = nearest_low_rank(change, limits)[0]
    if not pairs:
        raise ConvertError(f"These adapters change only layers that {form} files can't hold. Export them as diff.")
    if form == "diffusers":
        if lengths:   # diffusers takes all layers for DoRA as soon as one is
            lengths = {spec: lengths[spec] if spec in lengths else lengths_as_they_come(pair, weight_of(spec.name))
                       for spec, pair in pairs.items()}   # fmt: skip
        return to_diffusers(pairs, lengths), tuple(left_out)
    tensors = to_kohya(pairs, family)
    if problems := check_kohya(tensors, family):
        raise ConvertError(f"Other tools would reject this adapter as a kohya file: {problems[0]}. Export it as "
                           "native, which holds any adapter.")
    return tensors, tuple(left_out)


def _whole(
    mix: Mix, weight_of: WeightOf, form: str, family: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every layer exactly: each difference as it is, or in the algorithm of its own where there is one."""
    layers = _single_layers(mix) if form != "diff" else {}
    tensors: dict[str, Tensor] = {}
    left_out = []
    for change in weight_changes(mix, weight_of):
        name, layer, own = change.spec.name, layers.get(change.spec.name), None
        if layer is not None:
            enough = change.pair is not None or not layer.reads_weight
            weight = torch.zeros(change.spec.shape) if enough else weight_of(name)
            own = own_tensors(layer, weight, for_comfyui=form == "comfyui")
        parts = own or (to_diff(change) if form == "diff" else plain_tensors(change))
        if change.bias is not None and has_no_bias(name):   # PEFT adds a bias there; no tool reads one from a file
            left_out.append(name)
        elif change.bias is not None:
            parts = parts | {"diff_b" if len(change.spec.shape) > 1 else "b_norm": change.bias}
        tensors |= {f"{kohya_name(name, family)}.{ending_of(part)}": value for part, value in parts.items()}
    if form == "comfyui" and any(key.endswith(".dora_scale") and len(value) > 1 for key, value in tensors.items()):
        tensors[COMFYUI_LENGTHS_ENTRY] = torch.ones(1)
    return tensors, tuple(left_out)


def _single_layers(mix: Mix) -> dict[str, Adapter]:
    """The layers of a Mix that is one adapter as it is; none of any other Mix."""
    [(adapters, strength), *others] = mix.parts
    return {adapter.spec.name: adapter for adapter in adapters} if strength == 1 and not others else {}


def _is_dora(layer: Adapter) -> bool:
    return isinstance(layer, Dora) or (isinstance(layer, ImportedLora) and layer.lengths_given)


def _rounded(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    rounded = {key: value.float().contiguous() if key.endswith(_ALWAYS_EXACT)
               else value.to(PRECISIONS[dtype]).contiguous() for key, value in tensors.items()}   # fmt: skip
    for key, value in rounded.items():
        if not value.isfinite().all():
            raise ConvertError(f"{key} has values that {dtype} can't represent. Export in fp32; if that fails too, the "
                               "adapter is broken and must be trained again.")
    return rounded


@dataclass(frozen=True, slots=True)
class _Error:
    gap: float        # ‖ΔW in the file − ΔW‖
    size: float       # ‖ΔW‖
    rounding: bool    # the precision explains the gap

    @property
    def relative(self) -> float:
        """‖ΔW in the file − ΔW‖ / ‖ΔW‖: 0 where both are zero, infinite where only ΔW is."""
        return self.gap / self.size if self.size else 0.0 if self.gap == 0 else inf


def _errors(
    expected: Iterable[WeightChange], weight_of: WeightOf, path: Path, dtype: str
) -> tuple[list[_Error], tuple[int, ...]]:
    """For each layer, how far the file is from the adapters, and the ranks: read as any tool's file is read."""
    written, contents = read_foreign(path)
    theirs = {adapter.spec.name: adapter for adapter in written.double()}
    errors = []
    for change in expected:
        adapter = theirs.get(canonical_name(change.spec.name))
        if adapter is None:   # a layer that never reached the file
            size = change.matrix().norm().item()
            errors.append(_Error(size, size, rounding=not size))
            continue
        pair = adapter.factors()
        if change.pair is not None and pair is not None:
            errors.append(_pair_error(change.pair, pair, dtype))
        else:
            own = change.matrix().reshape(change.spec.shape)
            weight = weight_of(change.spec.name) if adapter.reads_weight and change.pair is None else own
            scale = weight.norm().item() if adapter.reads_weight else 0.0
            errors.append(_dense_error(change, adapter.delta(weight), dtype, scale))
    return errors, contents.ranks


def _pair_error(ours: Pair, theirs: Pair, dtype: str) -> _Error:
    (up, down), (their_up, their_down) = ours, theirs
    gap = _norm(torch.cat([their_up, -up], 1), torch.cat([their_down, down]))
    limits = torch.finfo(PRECISIONS[dtype])
    # Rounding moves a value by less than eps of itself, or than the smallest number where that is more.
    least = limits.smallest_normal * limits.eps
    a, b = (x.norm().item() for x in theirs)
    da, db = (limits.eps * x.norm().item() + least * x.numel() ** 0.5 for x in theirs)
    return _Error(gap, _norm(up, down), gap <= da * b + a * db + da * db)


def _dense_error(change: WeightChange, delta: Tensor, dtype: str, scale: float) -> _Error:
    """``scale`` is the size of what ΔW is a difference of: it is known no better than that rounds."""
    own = change.matrix()
    gap, size = (delta.reshape(own.shape) - own).norm().item(), own.norm().item()
    limits = torch.finfo(PRECISIONS[dtype])
    least = limits.smallest_normal * limits.eps
    return _Error(gap, size, gap <= limits.eps * (size + scale) + least * own.numel() ** 0.5)


def _norm(up: Tensor, down: Tensor) -> float:
    """‖up @ down‖ without forming the product, which is as large as the base model's own weight: ‖QR‖ = ‖R‖."""
    left, right = (torch.linalg.qr(factor, mode="r").R for factor in (up, down.T))
    return torch.linalg.matrix_norm(left @ right.T).item()
