"""Compress the embedded base in every preset and by every method, and compare each with the base itself.

    python -m benchmarks.compression.methods [--presets w4a4 …] [--methods talsq …]    measures what is not measured yet
    python -m benchmarks.compression.methods --render                                  docs/compress.md and its pictures

The methods are a ladder: ranges taken whole, ranges searched, QALoRA with one learning rate, with rates in proportion
to each layer's step size, with step sizes of their own at every timestep, and that for as long as the app does by
default; then ranges that each input has of its own, without learning, and with QALoRA for so long. All learn from the
same trajectories and are measured on prompts and seeds that no method has seen: the UNet's answers on the base's own
trajectory, and pictures drawn from the same noise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atelier.adapters.quantization.bit_policy import PRESETS
from atelier.adapters.quantization.fake_quant_layers import cache_quantized_weights, disable_fake_quant
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.compression.calibrate import Student, UnetCall, relative_errors, trajectory
from atelier.training.compression.compress import distillation_config, make_student
from atelier.training.compression.distill import Distillation
from atelier.training.compression.report import psnr
from atelier.training.config.compress_config import CompressConfig
from atelier.training.embedded_base.judge import Judge
from atelier.training.loop.training_loop import Controls
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.support.compress_page import EACH, PICTURES, RESULTS, render
from benchmarks.support.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
STEPS, TIMESTEPS = 50, 10
LONG = CompressConfig().steps   # what a person gets who changes nothing
DRAW_STEPS, SEEDS = 8, (70, 71)
# Things that are not among the prompts of calibration and learning.
THINGS = ("banana", "key", "pear", "mushroom", "bell", "fish", "bicycle", "hammer", "turtle", "cupcake", "bus",
          "ghost")   # fmt: skip
STYLES = ("3d", "flat")
PROTOCOL = {"steps": STEPS, "timesteps": TIMESTEPS, "draw_steps": DRAW_STEPS, "long": LONG,
            "pictures": EACH * len(THINGS)}
FIXED: dict[str, Any] = {"input_ranges": "calibrated"}
METHODS: dict[str, dict[str, Any]] = {
    "minmax": {"steps": 0, "search": False, "per_timestep": False, **FIXED},
    "searched": {"steps": 0, "per_timestep": False, **FIXED},
    "qalora": {"steps": STEPS, "scale_aware": False, "per_timestep": False, **FIXED},
    "scale": {"steps": STEPS, "per_timestep": False, **FIXED},
    "talsq": {"steps": STEPS, **FIXED},
    "long": {"steps": LONG, **FIXED},
    "dynamic": {"steps": 0, "input_ranges": "dynamic"},
    "dynamic-qalora": {"steps": STEPS, "input_ranges": "dynamic"},
    "dynamic-long": {"steps": LONG, "input_ranges": "dynamic"},
}


def main() -> None:
    """Measure what is missing, one cell after the other; each is written at once."""
    options = _options()
    if options.render:
        render()
        return
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for preset in options.presets:
        for method in options.methods:
            found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": []}
            if not any((cell["preset"], cell["method"]) == (preset, method) for cell in found["cells"]):
                found["cells"].append(measure(preset, method))
                known = {"machine": describe_machine(), "protocol": PROTOCOL}
                RESULTS.write_text(json.dumps({**found, **known}, indent=1) + "\n")
                print(json.dumps(found["cells"][-1]), flush=True)


def measure(preset: str, method: str) -> dict[str, Any]:
    """One preset by one method: everything from the start."""
    model = load("embedded", "cpu")
    config = CompressConfig(preset=preset, timesteps=TIMESTEPS, **METHODS[method])
    started = time.perf_counter()
    student = make_student(model, config)
    if config.steps:
        _learn(student, config)
    seconds = time.perf_counter() - started
    judged = [moment for seed in SEEDS for moment in _held_out(student, seed)]
    with cache_quantized_weights(model.unet):
        errors = relative_errors(model, judged)
        drawn = _pictures(model)
    _keep(drawn, f"{preset}-{method}")
    teacher = _base_pictures(student)
    return {
        "preset": preset, "method": method, "seconds": round(seconds),
        "error": float(np.mean(list(errors.values()))), "by_timestep": errors,
        "psnr": float(np.mean([psnr(*pair) for pair in zip(teacher, drawn, strict=True)])),
        "judge": _judged(drawn), "judge_base": _judged(teacher),
    }   # fmt: skip


def _learn(student: Student, config: CompressConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        course = distillation_config(config, student.model.info)
        learning = Distillation(student.model, student.switch, course, student.held_out, Path(folder))
        for _ in learning.events(Controls(lambda _: None, lambda: False)):
            pass


def _held_out(student: Student, seed: int) -> list[UnetCall]:
    prompts = [_prompt(i) for i in range(seed % 2, 4, 2)]
    return list(trajectory(student.model, student.switch, prompts, TIMESTEPS, torch.Generator().manual_seed(seed)))


def _prompt(i: int) -> str:
    return f"a {STYLES[i % len(STYLES)]} emoji of a {THINGS[i]}"


def _pictures(model: BaseModel) -> list[Image.Image]:
    """Every thing in one style, from the same few seeds."""
    requests = [DrawRequest(prompt=_prompt(i), seed=SEEDS[0], count=EACH, steps=DRAW_STEPS) for i in range(len(THINGS))]
    return [picture for request in requests for picture in draw(model, request)]


def _base_pictures(student: Student) -> list[Image.Image]:
    """The base's own, drawn once."""
    if not (PICTURES / "base").exists():
        with disable_fake_quant(student.switch):
            _keep(_pictures(student.model), "base")
    return [Image.open(path) for path in sorted((PICTURES / "base").glob("*.png"))]


def _judged(pictures: Sequence[Image.Image]) -> float:
    """Mean of the judge's probabilities of the thing and of the style that were asked for."""
    judge = Judge.load()
    prediction = judge.classify(pictures)
    things = [i // EACH for i in range(len(pictures))]
    objects = [prediction.objects[i, judge.object_index(THINGS[t])] for i, t in enumerate(things)]
    styles = [prediction.styles[i, judge.style_index(STYLES[t % len(STYLES)])] for i, t in enumerate(things)]
    return float(torch.stack([*objects, *styles]).mean())


def _keep(pictures: Sequence[Image.Image], name: str) -> None:
    (PICTURES / name).mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.save(PICTURES / name / f"{i:02}.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["w4a4", "w4a8", "w8a8", "w2a8"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--render", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
