"""How fast a UNet is in whole numbers on this processor: the linear layers of Stable Diffusion 1.5, and whole UNets.

    python -m benchmarks.compression.speed                 linear layers, about 4 minutes
    python -m benchmarks.compression.speed --whole         whole UNets, about 3 minutes and 4 GB of memory

Contenders for the layers take turns, each in a process of its own with one thread: float32, bfloat16, W8A8 and W4A8
with fixed scales through oneDNN, rounding of the input included, and torchao's dynamic W8A8. Whole UNets take turns
call by call in one process. What this machine can't do exactly, or has no instructions for, is left out and said to
be. Both write their part of benchmarks/results/compress_speed.json. torchao is found where it is installed with the
extra `peers`, or in a folder named in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
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

from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers
from atelier.adapters.quantization.bit_policy import assign_bits
from atelier.adapters.quantization.fake_quant_layers import (
    add_activation_quantizers,
    add_fake_quant,
    find_fake_quant_layers,
)
from atelier.adapters.quantization.int8 import onednn_linear, prepare_weight
from atelier.adapters.quantization.packed import count_integer_layers, load_packed, prepare_layers, save_packed
from atelier.kernels.fake_quant import encode
from atelier.training.base_models.base_model import load
from atelier.training.base_models.single_file import MODELS
from benchmarks.support.machine import describe_machine

RESULTS = Path(__file__).resolve().parents[1] / "results" / "compress_speed.json"
TURNS, SECONDS = 3, 0.05
CONTENDERS = ("fp32", "bf16", "w8a8", "w4a8", "torchao")
LARGEST = {"w8a8": 127, "w4a8": 15}


def main() -> None:
    """Measure the part that was asked for, or, as a child, be one contender for the layers."""
    options = _options()
    if options.contender:
        print(json.dumps(time_layers(options.contender)))
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found |= {"whole": whole_unets()} if options.whole else linear_layers()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def linear_layers() -> dict[str, Any]:
    """The linear layers of Stable Diffusion 1.5, contender by contender."""
    turns = [{name: _in_a_process(name) for name in CONTENDERS} for _ in range(TURNS)]
    able = [name for name in CONTENDERS if all(turn[name] for turn in turns)]
    return {
        "machine": describe_machine(), "processor": torch.backends.cpu.get_cpu_capability(),
        "rows": compared({name: [turn[name] for turn in turns] for name in able}),
        "left_out": {name: WHY_NOT[name] for name in CONTENDERS if name not in able}, "layers": sum(shapes().values()),
    }   # fmt: skip


def compared(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median seconds, and how much faster than float32 in the same turn: median, lowest and highest."""
    rows = {}
    for name, own in seconds.items():
        ratios = [slow / fast for slow, fast in zip(seconds["fp32"], own, strict=True)]
        rows[name] = {"seconds": statistics.median(own), "over_fp32": statistics.median(ratios),
                      "lowest": min(ratios), "highest": max(ratios)}   # fmt: skip
    return rows


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
            """Count a layer's shape of work: rows of its input, its inputs and its outputs."""
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
    ready = prepare_weight(numbers, torch.full((out,), 0.01), None)
    return None if ready is None else lambda: onednn_linear(encode(x, 0.03, 128, 8), 0.03, 128, ready)


def _torchao(x: Tensor, weight: Tensor) -> Callable[[], object]:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # pyright: ignore

    layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    return lambda: layer(x)


WHOLE = {   # UNet, and pictures in a batch: each picture is there twice, for guidance
    "embedded, 1 picture": ("embedded", 1), "embedded, 4 pictures": ("embedded", 4),
    "SD 1.5 at half its width, 256 px, 1 picture": ("sd1", 1),
}
CALLS = 7


def whole_unets() -> dict[str, Any]:
    """Each UNet of :data:`WHOLE` as float32, the same in the layout that whole numbers want, W4A8, and torchao."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"machine": describe_machine(), "unets": {}}
    for name, (kind, pictures) in WHOLE.items():
        unets = contending(kind)
        side = unets["fp32"].config.sample_size
        x = torch.randn(2 * pictures, unets["fp32"].config.in_channels, side, side)
        text = torch.randn(2 * pictures, 77, unets["fp32"].config.cross_attention_dim)
        seconds: dict[str, list[float]] = {each: [] for each in unets}
        with torch.inference_mode():
            for turn in range(CALLS + 1):
                for each, unet in unets.items():
                    started = time.process_time()
                    unet(x, torch.tensor(500), text)
                    if turn:   # the first warms up
                        seconds[each].append(time.process_time() - started)
        found["unets"][name] = {"rows": compared(seconds), "in_whole_numbers": count_integer_layers(unets["w4a8"])}
    return found


def contending(kind: str) -> dict[str, Any]:
    """The contenders over one UNet. Levels of inputs are any: how fast they are does not depend on them."""
    plain = load("embedded", "cpu", torch.float32).unet if kind == "embedded" else half_sd1()
    unets = {"fp32": plain, "fp32, channels last": copy.deepcopy(plain).to(memory_format=torch.channels_last),
             "w4a8": packed(plain)}   # fmt: skip
    if find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # pyright: ignore

        unets["torchao"] = copy.deepcopy(plain)
        quantize_(unets["torchao"], Int8DynamicActivationInt8WeightConfig())
    return unets


def half_sd1() -> Any:
    """Stable Diffusion 1.5's own layers at half their width, for 256 pixels, weights at random."""
    values = json.loads((MODELS / "sd1" / "unet" / "config.json").read_text())
    widths = [width // 2 for width in values["block_out_channels"]]
    return UNet2DConditionModel.from_config({**values, "block_out_channels": widths, "sample_size": 32}).eval()


@torch.no_grad()
def packed(plain: Any) -> Any:
    """The UNet in W4A8, ready to draw."""
    student = copy.deepcopy(plain)
    add_fake_quant(student, assign_bits(student, "w4a8"), rank=0, search=False)
    count = len(find_fake_quant_layers(student))
    steps, zeros = torch.full((count,), 0.05), torch.full((count,), 128.0)
    add_activation_quantizers(student, ActivationQuantizers((500,), steps, zeros, [8] * count))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unet.safetensors"
        save_packed(student, path, "w4a8", {})
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(plain.config)
        load_packed(unet, path, torch.float32)
    prepare_layers(unet)
    return unet.eval()


@torch.inference_mode()
def _time(work: Callable[[], object]) -> float:
    work()
    started, count = time.process_time(), 0
    while not count or time.process_time() - started < SECONDS:
        work()
        count += 1
    return (time.process_time() - started) / count


def _in_a_process(contender: str) -> float:
    command = [sys.executable, "-m", "benchmarks.compression.speed", "--contender", contender]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
    return json.loads(run.stdout.splitlines()[-1])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS)
    parser.add_argument("--whole", action="store_true", help="whole UNets instead of linear layers")
    return parser.parse_args()


if __name__ == "__main__":
    main()
