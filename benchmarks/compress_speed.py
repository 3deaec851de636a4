"""How fast the linear layers of Stable Diffusion 1.5 are in whole numbers on this processor.

    python -m benchmarks.compress_speed     benchmarks/results/compress_speed.json

Contenders take turns, each in a process of its own with one thread: float32, bfloat16, W8A8 and W4A8 with fixed
scales through oneDNN, rounding of the input included, and torchao's dynamic W8A8. What this machine can't do exactly,
or has no instructions for, is left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from atelier.adapters.int8 import linear, prepare
from atelier.kernels.fake_quant import encode
from atelier.training.single_file import MODELS
from benchmarks.machine import describe_machine

RESULTS = Path(__file__).resolve().parent / "results" / "compress_speed.json"
TURNS, SECONDS = 3, 0.05
CONTENDERS = ("fp32", "bf16", "w8a8", "w4a8", "torchao")
LARGEST = {"w8a8": 127, "w4a8": 15}


def main() -> None:
    """Let the contenders take turns, or, as a child, be one of them."""
    options = _options()
    if options.contender:
        print(json.dumps(time_layers(options.contender)))
        return
    turns = [{name: _in_a_process(name) for name in CONTENDERS} for _ in range(TURNS)]
    able = [name for name in CONTENDERS if all(turn[name] for turn in turns)]
    rows = {name: {"seconds": statistics.median(turn[name] for turn in turns)} for name in able}
    for name in able:
        ratios = [turn["fp32"] / turn[name] for turn in turns]
        rows[name] |= {"over_fp32": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    missing = {name: WHY_NOT[name] for name in CONTENDERS if name not in able}
    result = {"machine": describe_machine(), "processor": torch.backends.cpu.get_cpu_capability(), "rows": rows,
              "left_out": missing, "layers": sum(shapes().values())}   # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


WHY_NOT = {
    "bf16": "no bfloat16 instructions here: it would be emulated",
    "w8a8": "sums of 8-bit products overflow 16 bits on processors without VNNI or AMX, so Atelier does not use them",
    "w4a8": "this build of torch has no usable oneDNN",
    "torchao": "torchao is not installed here",
}


def time_layers(contender: str) -> float:
    """Seconds of CPU for one pass through all linear layers of the UNet's forward at 64 × 64; 0 where it can't."""
    torch.set_num_threads(1)
    total = 0.0
    for (rows, inner, out), count in shapes().items():
        work = _work(contender, rows, inner, out)
        if work is None:
            return 0.0
        total += count * _time(work)
    return total


def shapes() -> Counter[tuple[int, int, int]]:
    """Rows, inputs and outputs of every linear layer in a UNet call, and how often they occur."""
    found: Counter[tuple[int, int, int]] = Counter()
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(json.loads((MODELS / "sd1" / "unet" / "config.json").read_text()))

        def note(layer: nn.Linear, args: tuple[Tensor, ...], _output: Tensor) -> None:
            found[args[0].numel() // args[0].shape[-1], layer.in_features, layer.out_features] += 1

        for layer in unet.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(note)
        unet(torch.empty(1, 4, 64, 64), 1, torch.empty(1, 77, 768))
    return found


def _work(contender: str, rows: int, inner: int, out: int) -> Callable[[], object] | None:
    x, weight = torch.randn(rows, inner), torch.randn(out, inner)
    if contender == "fp32":
        return lambda: F.linear(x, weight)
    if contender == "bf16":
        half = x.bfloat16(), weight.bfloat16()
        return (lambda: F.linear(*half)) if torch.cpu._is_avx512_bf16_supported() else None
    if contender == "torchao":
        return _torchao(x, weight) if find_spec("torchao") else None
    largest = LARGEST[contender]
    numbers = torch.randint(-largest, largest + 1, (out, inner), dtype=torch.int8)
    ready = prepare(numbers, torch.full((out,), 0.01), None)
    step, zero = torch.tensor(0.03), torch.tensor(128.0)
    return None if ready is None else lambda: linear(encode(x, step, zero, 8), 0.03, 128, ready)


def _torchao(x: Tensor, weight: Tensor) -> Callable[[], object]:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # pyright: ignore

    layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    return lambda: layer(x)


@torch.inference_mode()
def _time(work: Callable[[], object]) -> float:
    work()
    started, count = time.process_time(), 0
    while not count or time.process_time() - started < SECONDS:
        work()
        count += 1
    return (time.process_time() - started) / count


def _in_a_process(contender: str) -> float:
    command = [sys.executable, "-m", "benchmarks.compress_speed", "--contender", contender]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
    return json.loads(run.stdout.splitlines()[-1])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
