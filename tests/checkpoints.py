"""Checkpoints in the true layout and size without their weights: a header, and a hole where the data would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

from atelier.adapters.formats.safetensors_header import BITS
from atelier.training.base_models.checkpoint_layout import TENSORS
from atelier.training.base_models.single_file import MODELS

Shapes = dict[str, tuple[int, ...]]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CONV_IN = UNET + "input_blocks.0.0.weight"


def shapes(family: str) -> Shapes:
    """Every weight of a family's single-file checkpoints."""
    stored = json.loads((MODELS / family / TENSORS).read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape in stored.items()}


def write_hollow(
    path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str = "F16", metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> Path:   # fmt: skip
    """Write a safetensors file whose data take no room on the disk; ``dtypes``: of single tensors."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in tensors.items():
        kind = (dtypes or {}).get(name, dtype)
        size = prod(shape) * BITS[kind] // 8
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)
    return path
