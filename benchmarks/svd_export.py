"""How long the SVD of a whole Stable Diffusion 1.5 UNet's update takes, and how near it comes to the best there is.

    python -m benchmarks.svd_export [--rank 64]      writes benchmarks/results/svd_export.json

Every linear layer and convolution gets a dense ΔW with the spectrum of a trained update (σₖ ∝ 1/k). Time is that of
``fuse.nearest`` alone. Error: ‖ΔW − pair‖ / ‖ΔW‖ beside that of the best possible pair of the same rank, which follows
from the spectrum (Eckart & Young 1936).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import cache
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.low_rank import LowRankLimits, WeightChange, nearest_low_rank
from benchmarks.support.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure, print one line, write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, default=64)
    options = parser.parse_args()
    config = json.loads((ROOT / "assets" / "models" / "sd1" / "unet" / "config.json").read_text())
    with torch.device("meta"):
        specs = find_targets({"unet": UNet2DConditionModel.from_config(config)}, "all")
    torch.manual_seed(0)
    seconds, values, excess = 0.0, 0, 1.0
    for spec in specs:
        dense, spectrum = _update(spec.rows, spec.columns)
        change = WeightChange(spec, dense=dense.reshape(spec.shape))
        began = time.perf_counter()
        (up, down), _ = nearest_low_rank(change, LowRankLimits(energy=1.0, rank=options.rank))
        seconds += time.perf_counter() - began
        matrix = change.matrix()
        error = (matrix - up @ down).norm() / matrix.norm()
        best = spectrum[options.rank:].norm() / spectrum.norm()
        excess = max(excess, (error / best).item() if best else 1.0)
        values += matrix.numel()
    result = {"machine": describe_machine(), "layers": len(specs), "values": values, "rank": options.rank,
              "seconds": round(seconds, 1), "largest_error_over_best": round(excess, 4)}   # fmt: skip
    path = ROOT / "benchmarks" / "results" / "svd_export.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{len(specs)} layers, {values:,} values, rank {options.rank}: {seconds:.1f} s, "
          f"error at most {excess:.3f} times the best possible")


@cache
def _update(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A dense ΔW and its singular values; making it takes longer than what is measured, so one for each shape."""
    least = min(rows, columns)
    spectrum = 1 / torch.arange(1, least + 1)
    left, right = (torch.linalg.qr(torch.randn(side, least)).Q for side in (rows, columns))
    return (left * spectrum) @ right.T, spectrum


if __name__ == "__main__":
    main()
