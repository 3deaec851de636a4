"""A million changed safetensors headers, by several processes: ``python tests/fuzz_headers.py PROCESSES``.

It imports nothing but the reader, so that a busy machine can run it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from fuzz import Outcome, Reader, fuzz, row, safetensors, with_length
from header_corpus import ADAPTERS, Header
from robustness import record

from atelier.adapters.formats import safetensors_header

INPUTS = 1_000_000


def file_reader(path: Path, read: Callable[[Path], object], zeros: int = 0) -> Callable[[bytes], object]:
    """Read bytes as a file, with so many zeros behind them."""
    def through_file(data: bytes) -> object:
        path.write_bytes(data)
        os.truncate(path, len(data) + zeros)
        return read(path)

    return through_file


def headers() -> list[bytes]:
    """A small file, and headers of larger ones whose data is missing."""
    small = {"__metadata__": {"format": "pt", "ss_network_dim": "4"},
             "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
             "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}}   # fmt: skip
    return [safetensors(small, 26), *(safetensors(_entries(ADAPTERS[name][0], count))
                                     for name, count in (("PEFT", 6), ("LoKr", 5), ("kohya, SD 1", 6)))]   # fmt: skip


def _entries(shapes: Header, count: int) -> dict[str, Any]:
    """Of the first tensors; they share their bytes."""
    return {name: {"dtype": "F16", "shape": [*shape], "data_offsets": [0, 2 * prod(shape)]}
            for name, shape in list(shapes.items())[:count]}   # fmt: skip


def header_reader(folder: Path) -> Reader:
    def read(path: Path) -> object:
        return safetensors_header.read_safetensors_header(path), safetensors_header.read_metadata(path)

    return Reader("safetensors header", headers(), file_reader(folder / "h.safetensors", read, 10_000_000),
                  repair=with_length)


def fuzz_headers(folder: Path, count: int, processes: int) -> Outcome:
    """Read changed headers in several processes, each with a file and a seed of its own."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = pool.starmap(_part, [(folder / str(seed), -(-count // processes), seed) for seed in range(processes)])
    return replace(
        parts[0], inputs=sum(part.inputs for part in parts), refused=sum(part.refused for part in parts),
        uncaught={kind: data for part in parts for kind, data in part.uncaught.items()},
        slow=sum(part.slow for part in parts), slowest=max(part.slowest for part in parts),
        growth=max(part.growth for part in parts),
    )   # fmt: skip


def _part(folder: Path, count: int, seed: int) -> Outcome:
    folder.mkdir()
    return fuzz(header_reader(folder), count, seed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as memory:
        found = fuzz_headers(Path(memory), INPUTS, int(sys.argv[1]))
    record("Fuzz: header reader", [row(found)], "python tests/fuzz_headers.py")
    sys.exit(not found.is_sound)
