"""Every operation in both forms on a GPU: microseconds, bytes moved, share of the memory's speed, largest error.

    python -m benchmarks.kernel_times [--json FILE]

Without a GPU the definitions alone are timed. Bytes are those that must be read and written once.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atelier.kernels.dispatch import CHOICE
from atelier.kernels.factor_forms import DenseFactor
from atelier.kernels.fake_quant import fake_quant
from atelier.kernels.gated_sum import GateVectors, gated_sum
from atelier.kernels.int8_linear import PackedWeight, int8_linear
from atelier.kernels.low_rank import low_rank_linear
from atelier.kernels.merge_low_rank import LowRankUpdate, merge_low_rank
from benchmarks.support.machine import describe_machine

RUNS = 30


class Case(NamedTuple):
    """An operation at one size."""

    name: str
    run: Callable[[], Tensor]
    bytes: int


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Sizes of Stable Diffusion 1.5 at 512 pixels."""
    dice, size = torch.Generator().manual_seed(0), dtype.itemsize

    def normal(*shape: int, full: bool = False) -> Tensor:
        """Values of a normal distribution on the device, in float32 where `full`."""
        return torch.randn(shape, generator=dice).to(device, torch.float32 if full else dtype)

    for count, width in ((4096, 320), (1024, 640)):
        x, weight, up, down = normal(count, width), normal(width, width), normal(width, 16), normal(16, width)
        yield Case(f"low_rank {count}×{width}", lambda a=(x, weight, None, up, down): low_rank_linear(*a),
                   size * (2 * count * width + width * width + 32 * width))
    weights = [normal(width, width) for width in (320, 640, 1280) for _ in range(8)]
    updates = [LowRankUpdate(DenseFactor(normal(len(w), 16, full=True)), DenseFactor(normal(len(w), 16, full=True)))
               for w in weights]
    yield Case("merge_low_rank 24 layers", lambda: torch.cat([w.flatten() for w in merge_low_rank(weights, updates)]),
               2 * size * sum(w.numel() for w in weights))
    values, step = normal(1280, 1280), normal(1280, 1, full=True).abs() + 0.1
    zero, middle = torch.full((1280, 1), 8.0).to(device), torch.tensor(128.0).to(device)
    yield Case("fake_quant 1280×1280", lambda: fake_quant(values, step, zero, 4), 2 * size * values.numel())
    codes = torch.randint(0, 256, (640, 1280), generator=dice).to(device, torch.uint8)
    packed = PackedWeight(codes, normal(1280, full=True).abs(), torch.full((1280,), 7.0).to(device), 4)
    rows, scale = normal(1024, 1280), torch.tensor(0.02).to(device)
    yield Case("int8_linear 1024×1280, 4 bits", lambda: int8_linear(rows, scale, middle, packed),
               2 * size * rows.numel() + codes.numel())
    base, parts, vectors = normal(4096, 320), normal(4, 4096, 320), GateVectors(*normal(9, 320, full=True))
    yield Case("gate 4 of 4096×320", lambda: gated_sum(base, parts, vectors), size * (2 + 4) * base.numel())


def timed(case: Case, device: str, form: str) -> tuple[float, Tensor]:
    """Median microseconds of many runs, and the result."""
    os.environ[CHOICE] = form
    result, times = case.run(), []
    for _ in range(RUNS):
        _wait(device)
        began = time.perf_counter()
        case.run()
        _wait(device)
        times.append((time.perf_counter() - began) * 1e6)
    return median(times), result


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Time all and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, Any]] = []
    for case in cases(device, torch.float16 if device == "cuda" else torch.float32):
        row: dict[str, Any] = {"name": case.name, "bytes": case.bytes}
        row["definition_us"], reference = timed(case, device, "torch")
        if device == "cuda":
            row["twin_us"], found = timed(case, device, "triton")
            row |= {"ratio": row["definition_us"] / row["twin_us"], "gb_per_s": case.bytes / row["twin_us"] / 1e3,
                    "largest_error": (found - reference).abs().max().item()}   # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine(), "kernels": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
