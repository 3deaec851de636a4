"""Whether the values of an adapter file are numbers that a picture can be drawn with."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atelier.adapters.formats.safetensors_header import SafetensorsHeader

if TYPE_CHECKING:   # a look at a file does without torch
    from torch import Tensor

LARGEST = 1e6        # of any value: half precision ends at 65,504, and no trained factor comes near that
LARGEST_RMS = 100.0  # of a ΔW's entries: those of a base model's weights are below 1
_FACTORS = ("alpha", "gain")


def value_problem(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the first tensor that can't be used, by its name; empty when all are well."""
    for key, value in tensors.items():
        if not (value.is_floating_point() or value.is_complex()):
            continue
        if value.is_complex():
            return f"{key} contains complex numbers"
        wide = value.float() if value.element_size() == 1 else value   # 8-bit floats know few operations
        largest = max(abs(end.item()) for end in wide.aminmax()) if wide.numel() else 0.0   # NaN if there is one
        if not isfinite(largest):
            return f"{key} contains values that are not finite (NaN or infinity)"
        if largest > LARGEST:
            return f"{key} contains values as large as {largest:.1e}, which no training produces"
    return ""


# Number format → integers of its size, and the bits of which all are set in NaN and infinity.
_EXPONENTS = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80),
              "F8_E5M2": ("u1", 0x7C), "F8_E4M3": ("u1", 0x7F)}   # fmt: skip


def find_not_finite(path: Path, header: SafetensorsHeader) -> str:
    """The first tensor of a file that holds NaN or infinity, without torch; empty where none does."""
    for key, entry in header.tensors.items():
        if entry.dtype in _EXPONENTS and entry.count:
            integers, bits = _EXPONENTS[entry.dtype]
            values = np.memmap(path, integers, "r", entry.start, (entry.count,))
            if np.any((values & bits) == bits):
                return key
    return ""


def is_zero(path: Path, header: SafetensorsHeader, key: str) -> bool:
    """Whether all values of a tensor are 0, without torch."""
    entry = header.tensors[key]
    return entry.bytes > 0 and not np.any(np.memmap(path, "u1", "r", entry.start, (entry.bytes,)))


def number_problem(settings: Mapping[str, Any]) -> str:
    """What is wrong with the settings that multiply an update; empty when all are of ordinary size."""
    factors = {name: value for name, value in settings.items()
               if isinstance(value, float) or (name in _FACTORS and isinstance(value, int))}   # fmt: skip
    return next((f"its setting {name} is {value:.1e}" for name, value in factors.items()
                 if not abs(value) <= LARGEST), "")   # fmt: skip
