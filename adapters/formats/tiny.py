"""Tiny adapter files: every matrix in 1, 2 or 4 bits, and in the header what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from atelier.adapters.core.base import Adapter
from atelier.adapters.formats.codebook import BITS, pack, unpack
from atelier.adapters.formats.lycoris import Imported
from atelier.adapters.formats.native import load_adapter, read_header, write_tensors
from atelier.adapters.kinds.catalog import get_kind


class TinyError(ValueError):
    """An adapter that can't be made tiny; the message says why."""


@dataclass(frozen=True, slots=True)
class TinyReport:
    """What was written, and how far it is from the adapter it was made from."""

    bytes: int
    mean_error: float   # ‖ΔW in the file − ΔW‖ / ‖ΔW‖, mean over the layers: the error of outputs for white inputs
    worst_error: float


def shrink(path_in: Path, path_out: Path, bits: int) -> TinyReport:
    """Write a native adapter file in ``bits`` a value; ``load_adapter`` opens it like any other.

    After training, without data (after Jie et al. 2023, arXiv 2307.16867, who train with the codebook in place; 1 bit
    costs much without that). The header holds the measured errors, ``AdapterInfo.error`` and ``worst_error``.

    Raises:
        FileError: ``path_in`` can't be read.
        TinyError: no such number of bits, or a kind whose update is not a low-rank pair, where a small error in its
            tensors can be a large one in the update.
    """
    header = read_header(path_in)
    if bits not in BITS:
        raise TinyError(f"bits is {bits}, but it must be one of: {', '.join(map(str, BITS))}.")
    if header.kind == Imported.kind:
        raise TinyError(f"{path_in.name} comes from another tool, and only Atelier's own adapters can be made tiny. "
                        "Merge it into a new adapter first.")
    if not get_kind(header.kind).is_low_rank():
        raise TinyError(f"{get_kind(header.kind).title} is not a low-rank pair, and only those can be made tiny. Merge "
                        "it into a new adapter first.")
    adapters = load_adapter(path_in)
    before = [_factors(adapter) for adapter in adapters]
    packed = pack(adapters.tensors(), bits)
    adapters.load_tensors(unpack(packed, bits, {name: tensor.shape for name, tensor in adapters.tensors().items()}))
    errors = [_error(_factors(adapter), old) for adapter, old in zip(adapters, before, strict=True)]
    mean_error, worst_error = sum(errors) / len(errors), max(errors)
    info = replace(header.info, error=mean_error, worst_error=worst_error)
    layout = replace(header.layout, bits=bits)
    write_tensors(path_out, packed, {**info.to_metadata(), **layout.to_metadata()})
    return TinyReport(path_out.stat().st_size, mean_error, worst_error)


def _factors(adapter: Adapter) -> tuple[Tensor, Tensor]:
    factors = adapter.factors()
    assert factors is not None
    up, down = factors
    return up.clone(), down.clone()   # some kinds hand out the very tensors that are about to be overwritten


def _error(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> float:
    (up, down), (old_up, old_down) = found, wanted
    size = _norm(old_up, old_down)
    return _norm(torch.cat([up, -old_up], 1), torch.cat([down, old_down])) / size if size else 0.0


def _norm(up: Tensor, down: Tensor) -> float:
    """‖up @ down‖ from the two small Gram matrices, in float64."""
    up, down = up.double(), down.double()
    return ((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt().item()
