"""What only a card can show, in eleven minutes: kernels, graphs, speed beside PEFT, and memory against the plan.

    python -m benchmarks.gpu [--json FILE] [--minutes 11]      the figures, as JSON; `make gpu` runs it
    python -m benchmarks.gpu --dry-run                         few channels, on the simulated device of the tests
    python -m benchmarks.gpu --render                          their section of docs/benchmarks.md

Each part has a process of its own and a share of the time: one that fails or takes too long leaves the others alone,
and what it said last is kept. The file is written after each part, for a lent card may be gone at any moment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
CAPS = (8, 12, 16, 24)   # GB
SLACK = 10.0             # seconds that are kept for writing


def main() -> int:
    """Run all parts within the time, or one of them as a child, or render."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--dry-run", action="store_true", help="few channels on the pretended device: does it run?")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(run_part(given.part, dry=given.dry_run)))
        return 0
    if given.render:
        print(section(json.loads(given.json.read_text(encoding="utf-8"))))
        return 0
    if not given.dry_run and not torch.cuda.is_available():
        print("There is no NVIDIA card here that torch can use; `atelier doctor` says why. --dry-run needs none.")
        return 1
    return run_all(given.json if not given.dry_run else None, 60 * given.minutes, dry=given.dry_run)


def run_all(path: Path | None, seconds: float, *, dry: bool) -> int:
    """Every part in its turn, while there is time; returns 1 where one failed."""
    until = time.monotonic() + seconds
    result: dict[str, Any] = {"machine": describe_machine(), "dry": dry, "parts": {}}
    for name, part in PARTS.items():
        left = until - time.monotonic() - SLACK
        share = left if dry else min(left, part.seconds)   # without a card it is not known how fast the machine is
        result["parts"][name] = found = _in_a_process(name, share, dry=dry) if left > 5 else {
            "error": "there was no time left"}   # fmt: skip
        print(json.dumps({name: found}), flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in found for found in result["parts"].values()))


def _in_a_process(name: str, seconds: float, *, dry: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, *(["--dry-run"] if dry else [])]
    began = time.monotonic()
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {seconds:.0f} s"}
    took = {"seconds": round(time.monotonic() - began, 1)}
    if run.returncode:
        return {"error": (run.stderr.strip().splitlines() or ["no word"])[-1], **took}
    return {**json.loads(run.stdout.splitlines()[-1]), **took}


def run_part(name: str, *, dry: bool) -> dict[str, Any]:
    """The figures of one part."""
    with ExitStack() as stack:
        if dry:
            sys.path.insert(0, str(ROOT / "tests"))
            from pretend_device import pretend_device

            from benchmarks.support.random_base import few_channels

            stack.enter_context(pretend_device(gigabytes=200))
            stack.enter_context(few_channels())
        return PARTS[name].measure(dry)


# --- the parts -------------------------------------------------------------------------------------------------------

def kernels(dry: bool) -> dict[str, Any]:
    """Each Triton twin against its definition; those that agree run from then on."""
    options = ["--cases", "gated_sum"] if dry else ["--device", "cuda", "--dtypes", "float32", "float16", "bfloat16"]
    command = [sys.executable, "tests/kernels/twins.py", *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT,
                         env={**os.environ, **({"TRITON_INTERPRET": "1"} if dry else {})})   # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    wrong = sorted({line["case"] for line in lines if not line["error"] <= line["limit"]})
    if not lines:
        raise RuntimeError((run.stderr.strip().splitlines() or ["no word"])[-1])
    return {"cases": len(lines), "wrong": wrong, "largest_error": max(line["error"] for line in lines)}


def tests(dry: bool) -> dict[str, Any]:
    """The tests that need a card: graphs, offloading, memory."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=line", *(["--collect-only"] if dry else [])]
    folders = ["tests/kernels", *([] if dry else ["tests/training"])]
    run = subprocess.run([*command, *folders], capture_output=True, text=True, cwd=ROOT)
    return {"code": run.returncode, "last": (run.stdout.strip().splitlines() or [""])[-1]}


def steps(dry: bool) -> dict[str, Any]:
    """A training step of Stable Diffusion 1.5's shape at 512 pixels: ours, ours recorded, PEFT, the script's recipe."""
    found = {}
    for name in ("atelier", "peft", "diffusers recipe"):
        options = {"quick": dry, "side": 64 if dry else 512, "rank": 16, "device": _device(dry).type,
                   "dtype": "float32" if dry else "bfloat16"}   # fmt: skip
        found[name] = _step_times(name, options, 2 if dry else 30)
    return found


def _step_times(name: str, options: dict[str, Any], repeats: int) -> dict[str, float]:
    from benchmarks.support.contenders import CONTENDERS

    step, device = CONTENDERS[name](options).repeat, torch.device(options["device"])
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()   # which reads its loss, and so waits for the device
        times.append(time.perf_counter() - began)
    return {"seconds": round(median(times), 5), "peak_gb": round(_peak(device) / 1e9, 3)}


def training(dry: bool) -> dict[str, Any]:
    """The same through our loop, recorded and not: 500 steps, and what a checkpoint would hold."""
    return {name: _trained("sd1", dry, record=record, count=3 if dry else 250)
            for name, record in (("recorded", True), ("not recorded", False))}   # fmt: skip


def _trained(family: str, dry: bool, *, record: bool, count: int, checkpointing: bool = False) -> dict[str, float]:
    """Steps of the loop on random pictures; the first ones, which warm up and record, apart."""
    from atelier.adapters.core.targets import find_targets
    from atelier.adapters.kinds.catalog import create_adapters
    from atelier.training.config.events import Stepped
    from atelier.training.config.train_config import TrainConfig
    from atelier.training.data.latent_cache import Example, tokenize
    from atelier.training.loop.cuda_graph import CudaGraphs
    from atelier.training.loop.distributed import SINGLE_PROCESS
    from atelier.training.loop.optimizer_step import make_accelerator
    from atelier.training.loop.training_loop import Controls, Training
    from atelier.training.recipes.dreambooth import TrainingData, recipe

    device = _device(dry)
    model = _base(family, dry, torch.float32 if dry else torch.bfloat16)
    model.offload(model.vae)
    side = 8 if dry else model.info.resolution // 8
    row, sizes = tokenize(model, ["a photo of rex dog"])[0], (8 * side, 8 * side, 0, 0, 8 * side, 8 * side)
    examples = [Example(torch.randn(4, side, side), torch.full((4, side, side), 0.1), row, sizes) for _ in range(4)]
    config = TrainConfig(name="rex", subject="dog", batch=1, steps=count, warmup=0, prior_count=0, prior_weight=0.0,
                         validate_every=0, preview_every=0, checkpoint_every=0, gradient_checkpointing=checkpointing,
                         record="auto" if record else "off", keep_best=False)   # fmt: skip
    if checkpointing:
        model.unet.enable_gradient_checkpointing()
        model.unet.train()
    adapters = create_adapters("lora", {"rank": 16}, find_targets({"unet": model.unet}, "transformer")).to(device)
    method = recipe(model, adapters, TrainingData(examples, [], examples), config, Path(tempfile.gettempdir()))
    model.offload(*model.text_encoders)
    gpu = CudaGraphs() if record and device.type == "cuda" else None
    loop = Training(method, config, Path(tempfile.mkdtemp()), make_accelerator(model), SINGLE_PROCESS, gpu)
    began = time.perf_counter()
    events = [event for event in loop.events(Controls(lambda _: None, lambda: False)) if isinstance(event, Stepped)]
    whole = time.perf_counter() - began
    late = [event.seconds for event in events[len(events) // 2 :]]
    return {"step_seconds": round(median(late), 5), "all_seconds": round(whole, 2), "steps": len(events),
            "peak_gb": round(_peak(device) / 1e9, 3)}   # fmt: skip


def memory(dry: bool) -> dict[str, Any]:
    """Pictures with two LoRAs on cards of 8 to 24 GB: what the plan says, and what it took."""
    found = {}
    for family in ("sd1", "sdxl"):
        for cap in CAPS[-1:] if dry else CAPS:
            found[f"{family}, {cap} GB"] = _drawn(family, cap, dry)
    return found


def _drawn(family: str, cap: int, dry: bool) -> dict[str, Any]:
    """One picture under a cap, as the engine draws it."""
    from unittest.mock import patch

    from atelier.adapters.core.mix import Mix
    from atelier.adapters.core.targets import find_targets
    from atelier.adapters.kinds.catalog import create_adapters
    from atelier.training.base_models.device import RESERVE, release_cached
    from atelier.training.sampling import draw_memory
    from atelier.training.sampling.draw_cache import DrawCache
    from atelier.training.sampling.draw_memory import estimate_drawing, plan_drawing
    from atelier.training.sampling.sample import DrawRequest, draw

    device, dtype = _device(dry), torch.float32 if dry else torch.float16
    model = _base(family, dry, dtype)
    request = DrawRequest(prompt="a photo of a fox", steps=2, width=64 if dry else 0, height=64 if dry else 0)
    loras = [create_adapters("lora", {"rank": 16}, find_targets({"unet": model.unet}, "transformer")) for _ in range(2)]
    with patch.object(draw_memory, "available_memory", lambda _: int(cap * 1e9 * (1 - RESERVE))):
        plan = plan_drawing(model.info, request, loras, dtype, device)
    need = estimate_drawing(model.info, request, loras, dtype, plan.savings)
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 1e9 / whole))
    if plan.savings.offload:
        model.offload(model.vae, *model.text_encoders)
    release_cached(device)
    _forget_peak(device)
    mix = Mix(tuple((each.to(device), 0.5) for each in loras))
    began = time.perf_counter()
    draw(model, request, mix, cache=DrawCache(savings=plan.savings))
    seconds = time.perf_counter() - began
    return {"planned_gb": round(need.peak / 1e9, 2), "peak_gb": round(_peak(device) / 1e9, 2),
            "savings": [name for name in plan.savings.__slots__ if getattr(plan.savings, name)],
            "seconds": round(seconds, 2)}   # fmt: skip


def xl_training(dry: bool) -> dict[str, Any]:
    """Steps of Stable Diffusion XL at 1024 pixels with checkpointing, inside 8 GB."""
    if not dry:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 8e9 / whole))
    return _trained("sdxl", dry, record=False, count=3 if dry else 5, checkpointing=True)


def click_to_file(dry: bool) -> dict[str, Any]:
    """The embedded base, from the start of the process to the adapter file in 500 steps; ours and PEFT's loop."""
    if dry:
        return {"left out": "takes minutes without a card"}
    from .from_click import from_click_to_file

    return from_click_to_file({"steps": 500, "repeats": 1})


class Part:
    """What is measured, and the seconds it may take."""

    def __init__(self, measure: Callable[[bool], dict[str, Any]], seconds: float) -> None:
        self.measure, self.seconds = measure, seconds


PARTS = {
    "kernels": Part(kernels, 60), "tests": Part(tests, 90), "steps": Part(steps, 90), "training": Part(training, 90),
    "memory": Part(memory, 150), "xl training": Part(xl_training, 60), "click to file": Part(click_to_file, 110),
}   # fmt: skip


def _device(dry: bool) -> torch.device:
    return torch.device("npu" if dry else "cuda")


def _base(family: str, dry: bool, dtype: torch.dtype) -> Any:
    from benchmarks.support.random_base import random_base

    return random_base(family, _device(dry), dtype)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


# --- the document ----------------------------------------------------------------------------------------------------

def section(result: Mapping[str, Any]) -> str:
    """A section of docs/benchmarks.md: for each part its title and its figures."""
    lines = ["", "## On a card", "", f"Written from `make gpu` ({in_words(result['machine'])})."]
    for name, found in result["parts"].items():
        lines += ["", f"### {(PARTS[name].measure.__doc__ or '').splitlines()[0]}", ""]
        rows = {key: value for key, value in found.items() if isinstance(value, dict)}
        if rows:
            columns = list(dict.fromkeys(key for row in rows.values() for key in row))
            heads = " | ".join(column.replace("_", " ") for column in columns)
            lines += [f"| | {heads} |", f"|---|{'---|' * len(columns)}"]
            lines += [f"| {key} | {' | '.join(_cell(row.get(column)) for column in columns)} |"
                      for key, row in rows.items()]   # fmt: skip
        plain = {key: value for key, value in found.items() if not isinstance(value, dict)}
        lines += ["", "; ".join(f"{key.replace('_', ' ')}: {_cell(value)}" for key, value in plain.items()) + "."]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
