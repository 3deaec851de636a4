"""The native adapter file: safetensors, with everything needed to rebuild the adapter in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.formats import safetensors_header
from atelier.adapters.formats.adapter_info import AdapterInfo, AdapterLayout, adapter_header_problem
from atelier.adapters.formats.check_values import number_problem, value_problem
from atelier.adapters.formats.codebook import BITS, unpack
from atelier.adapters.formats.imported_layers import SHARED_NAME, create_imported
from atelier.adapters.formats.layer_parts import algorithm_of, shared_parts
from atelier.adapters.formats.layer_shapes import ShapeError, Shapes, weight_shape
from atelier.adapters.formats.lycoris import Imported
from atelier.adapters.formats.safetensors_header import FileError, HeaderError
from atelier.adapters.kinds.catalog import create_adapters

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class AdapterHeader:
    """What an adapter file says about itself, read without touching its tensors."""

    kind: str
    settings: dict[str, Any]
    specs: tuple[Spec, ...]
    metadata: dict[str, str]   # all text entries
    ranks: dict[str, int] = field(default_factory=dict)   # of the modules whose rank is not that of the settings
    bits: int = 0              # of each value; 0: as they are

    @property
    def layout(self) -> AdapterLayout:
        """What an unpacked file of the same tensors needs in its header."""
        modules = {spec.name: list(spec.shape) for spec in self.specs}
        return AdapterLayout(kind=self.kind, settings=self.settings, modules=modules, ranks=self.ranks)

    @property
    def info(self) -> AdapterInfo:
        """The entries that describe the adapter."""
        return AdapterInfo.from_metadata(self.metadata)


def save_adapter(path: Path, adapters: AdapterSet, metadata: Mapping[str, str]) -> None:
    """Write ``adapters`` to ``path`` exactly as they are; a reader sees the old file or the whole new one."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapters.tensors().items()}
    layout = AdapterLayout(
        kind=adapters.kind, settings=adapters.settings.to_dict(), ranks=adapters.ranks,
        modules={spec.name: list(spec.shape) for spec in adapters.specs},
    )   # fmt: skip
    write_tensors(path, tensors, {**metadata, **layout.to_metadata()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; no crash or full disk leaves half of it."""
    atomic_write(path, save(dict(tensors), dict(metadata)))


def read_header(path: Path) -> AdapterHeader:
    """Read kind, settings, target modules and metadata of a native adapter file, without its tensors.

    Raises:
        FileError: not a safetensors file, cut short, or not written by Atelier.
    """
    entries = read_native_metadata(path)
    try:
        return _header(entries)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path.name} has a damaged header ({error!r}). Download or copy the file again.") from None


def read_native_metadata(path: Path) -> dict[str, str]:
    """All text entries of a native adapter file; a list of thousands takes seconds.

    Raises:
        FileError: see :func:`read_header`.
    """
    entries = read_metadata(path)
    if problem := adapter_header_problem(entries):
        raise FileError(f"{path.name} {problem}")
    return entries


def _header(entries: dict[str, str]) -> AdapterHeader:
    layout = AdapterLayout.from_metadata(entries)
    specs = tuple(Spec(name, _shape(shape)) for name, shape in layout.modules.items())
    if len(specs) > safetensors_header.MAX_TENSORS:
        raise ValueError(f"{len(specs)} modules")
    return AdapterHeader(layout.kind, layout.settings, specs, entries, layout.ranks, layout.bits)


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    if not 1 <= len(sizes) <= safetensors_header.MAX_DIMENSIONS:
        raise ValueError(f"a shape of {len(sizes)} dimensions")
    if wrong := [size for size in sizes if type(size) is not int or not 0 <= size <= safetensors_header.MAX_SIZE]:
        raise ValueError(f"a shape with the size {str(wrong[0])[:20]}")
    return tuple(sizes)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text entries of a safetensors header.

    Raises:
        FileError: the file is missing, unreadable, cut short or not safetensors.
    """
    try:
        return safetensors_header.read_metadata(path)
    except FileNotFoundError:
        raise FileError(f"{path.name} does not exist.") from None
    except HeaderError as error:
        raise FileError(f"{path.name} {error}") from None
    except OSError as error:
        raise FileError(f"{path.name} can't be read: {error.strerror}.") from None


def load_adapter(path: Path, device: torch.device | str = "cpu") -> AdapterSet:
    """Rebuild the adapter set that :func:`save_adapter` wrote, in float32, where the model is that it will change.

    Raises:
        FileError: see :func:`read_header`; also when the tensors do not fit the header, or hold NaN, infinity or
            absurdly large numbers.
    """
    found = read_header(path)
    if problem := number_problem(found.settings):
        raise FileError(f"{path.name} is damaged: {problem}.")
    if found.kind == Imported.kind:
        return _load_imported(path, found).to(device)
    try:
        _check_size(path, found)
        with torch.random.fork_rng(devices=[]):   # new adapters draw start values; opening a file must not
            adapters = create_adapters(found.kind, found.settings, found.specs, found.ranks)
        tensors = read_sound_tensors(path)
        if found.bits:
            shapes = {name: tensor.shape for name, tensor in adapters.tensors().items()}
            tensors = unpack(tensors, found.bits, shapes)
        adapters.load_tensors(tensors)
    except ValueError as error:
        raise FileError(f"{path.name}: {error}") from None
    return adapters.requires_grad_(False).to(device)


def _check_size(path: Path, found: AdapterHeader) -> None:
    """See to it that what the header describes is what the file holds, before memory is taken for it.

    Raises:
        ValueError: a tensor is missing or has another shape; the first ones are named.
    """
    entries = safetensors_header.read_safetensors_header(path).tensors
    with torch.device("meta"):   # shapes without memory
        own = create_adapters(found.kind, found.settings, found.specs, found.ranks).tensors()
    if found.bits not in (0, *BITS):
        raise ValueError(f"{found.bits} bits per value, but only {', '.join(map(str, BITS))} are possible")
    wrong = [name for name, tensor in own.items() if not _holds(entries, name, tensor.shape, found.bits)]
    if wrong:
        raise ValueError(f"this {found.kind} file does not match its own header at: {', '.join(sorted(wrong)[:5])}")


def _holds(entries: Mapping[str, safetensors_header.TensorEntry], name: str, shape: torch.Size, bits: int) -> bool:
    """Whether the file has a tensor, as it is or in a few bits a value."""
    if bits and f"{name}|codes" in entries:
        return 8 * entries[f"{name}|codes"].bytes >= bits * shape.numel()
    return name in entries and entries[name].shape == tuple(shape)


def _load_imported(path: Path, found: AdapterHeader) -> AdapterSet:
    layers = _imported_layers(path, found, read_sound_tensors(path))
    return create_imported({spec: layers[spec.name] for spec in found.specs}).requires_grad_(False)


def _imported_layers(path: Path, found: AdapterHeader, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer, by their parts.

    Raises:
        FileError: they don't fit the header, or each other.
    """
    layers: dict[str, dict[str, Tensor]] = {spec.name: {} for spec in found.specs}
    shared: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition(".")
        if name not in layers and name != f"@{SHARED_NAME}":
            raise FileError(f"{path.name} is damaged: {key} is missing in its header. Download or copy the file again.")
        layers.get(name, shared)[part] = value
    for parts in layers.values():
        parts |= {part: shared[part] for part in shared_parts(parts) if part in shared and part not in parts}
    for spec in found.specs:
        if reason := _misfit(spec, {part: tuple(value.shape) for part, value in layers[spec.name].items()}):
            raise FileError(f"{path.name} is damaged: {reason}. Import it again from its source.")
    return layers


def _misfit(spec: Spec, shapes: Shapes) -> str:
    """Why the tensors of an imported layer make none; empty when they do."""
    algorithm = algorithm_of(shapes)
    if algorithm is None or not all(map(algorithm.knows, shapes)):
        return f"the tensors of {spec.name} don't form a layer"
    try:
        shape = weight_shape(spec.name, algorithm.name, shapes)
    except ShapeError as error:
        return f"{spec.name}.{error.part} has the shape {list(shapes[error.part])}, but it {error}"
    sides = (shape[0], prod(shape[1:])), (spec.rows, spec.columns)
    fits = all(0 in pair or pair[0] == pair[1] for pair in zip(*sides, strict=True))
    return "" if fits else f"the tensors of {spec.name} don't fit the shape that the header gives"


def adapter_problem(path: Path) -> str:
    """What keeps a native adapter file from being used, as far as its values tell; empty when nothing does.

    Much faster than :func:`load_adapter`, which says the rest.
    """
    try:
        header = read_header(path)
        if problem := number_problem(header.settings):
            return f"{path.name} is damaged: {problem}."
        tensors = read_sound_tensors(path)
        if header.kind == Imported.kind:
            _imported_layers(path, header, tensors)
    except FileError as error:
        return str(error)
    return ""


def read_sound_tensors(path: Path) -> dict[str, Tensor]:
    """As :func:`read_tensors`, for adapters: every value is an ordinary number.

    Raises:
        FileError: it is not one, or a tensor holds something else; the message names it.
    """
    tensors = read_tensors(path)
    if problem := value_problem(tensors):
        raise FileError(f"{path.name} is damaged: {problem}. It would ruin every picture drawn with it. Delete it, or "
                        "train it again.")
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file.

    Raises:
        FileError: it is not one, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}   # noqa: SIM118 (a file, not a dict)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path.name} is not a complete safetensors file ({error}). Download or copy it "
                        "again.") from None


def content_hash(adapters: AdapterSet) -> str:
    """SHA-256 of all that makes an adapter: names, shapes, dtypes, scales and values, whatever file it came in."""
    digest = hashlib.sha256()
    layers = sorted((spec.name, spec.shape) for spec in adapters.specs)
    own = [adapters.kind, adapters.settings.to_dict(), adapters.ranks, layers]
    digest.update(json.dumps(own, sort_keys=True).encode())
    for key, value in sorted(adapters.tensors().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_hash(path: Path) -> str:
    """SHA-256 of the tensor bytes alone, so that editing metadata does not change it: sshs_model_hash."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        file.seek(_LENGTH_BYTES + length)
        return hashlib.file_digest(file, "sha256").hexdigest()
