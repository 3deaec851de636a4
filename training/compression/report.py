"""The report of a compression: size, time, the same pictures before and after, and the error of each layer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.quantization.fake_quant_layers import FakeQuantSwitch, disable_fake_quant
from atelier.adapters.quantization.packed import count_integer_layers
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.compression.calibrate import Student, error_by_layer, relative_errors
from atelier.training.config.compress_config import CompressConfig
from atelier.training.sampling.sample import DrawRequest, draw

REPORT, PAIRS = "report.json", "pairs"
PAIR_COUNT = 4
FIRST_SEED = 500
WORST_LAYERS = 12


@dataclass(frozen=True, slots=True)
class ComparisonPictures:
    """The same prompts and seeds, drawn by the base model and by the compressed one."""

    prompts: list[str]
    before: list[Image.Image]
    after: list[Image.Image]
    seconds: tuple[float, float]   # of one picture, before and after
    whole_numbers: tuple[int, int]   # layers that computed in integers, and the number of all


def draw_pairs(model: BaseModel, switch: FakeQuantSwitch, out: Path, config: CompressConfig) -> ComparisonPictures:
    """Draw with the base model, and with the compressed one as it is loaded from its folder."""
    prompts = _prompts(model, config)
    with disable_fake_quant(switch):
        before, slow = _draw_all(model, prompts, config.timesteps)
    compressed = load(str(out), model.device, model.dtype)
    after, fast = _draw_all(compressed, prompts, config.timesteps)
    return ComparisonPictures(prompts, before, after, (slow, fast), count_integer_layers(compressed.unet))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures of one size, in dB; 99 for equal ones."""
    difference = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    mean = float(np.square(difference).mean())
    return min(99.0, 10 * np.log10(255**2 / mean)) if mean else 99.0


def write_report(
    folder: Path, config: CompressConfig, student: Student, pictures: ComparisonPictures, before: Mapping[int, float]
) -> None:
    """Write ``report.json`` and the pairs of pictures into the run folder.

    Args:
        folder: the run's.
        config: the recipe.
        student: the model, at its best.
        pictures: the pairs.
        before: relative errors by timestep before anything was learned.
    """
    (folder / PAIRS).mkdir(exist_ok=True)
    pairs = []
    for i, (prompt, one, other) in enumerate(zip(pictures.prompts, pictures.before, pictures.after, strict=True)):
        names = f"{PAIRS}/{i}-before.png", f"{PAIRS}/{i}-after.png"
        for name, picture in zip(names, (one, other), strict=True):
            picture.save(folder / name)
        pairs.append({"prompt": prompt, "seed": FIRST_SEED + i, "before": names[0], "after": names[1],
                      "psnr": round(psnr(one, other), 2)})   # fmt: skip
    model = student.model
    layers = error_by_layer(model, student.switch, student.held_out[:: max(1, len(student.held_out) // 4)])
    worst = sorted(layers.items(), key=lambda item: item[1], reverse=True)[:WORST_LAYERS]
    after = relative_errors(model, student.held_out)
    packed = folder / "compressed" / "unet"
    report: dict[str, Any] = {
        "preset": config.preset, "steps": config.updates, "pairs": pairs,
        "bytes_before": 2 * sum(parameter.numel() for parameter in _original_parameters(model)),
        "bytes_after": sum(path.stat().st_size for path in packed.glob("*.safetensors")),
        "seconds_before": pictures.seconds[0], "seconds_after": pictures.seconds[1],
        "whole_numbers": pictures.whole_numbers, "device": model.device.type,
        "layers": len(student.plan), "by_layer": worst,
        "by_timestep": {"before": list(before.items()), "after": list(after.items())},
    }   # fmt: skip
    atomic_write(folder / REPORT, json.dumps(report).encode())


def _original_parameters(model: BaseModel) -> Sequence[Any]:
    """The UNet's parameters without those that distillation added."""
    added = ("up", "down", "steps")
    return [value for name, value in model.unet.named_parameters()
            if name.rsplit(".", 1)[-1] not in added and not name.startswith("input_levels.")]   # fmt: skip


def _prompts(model: BaseModel, config: CompressConfig) -> list[str]:
    own = [line.strip() for line in config.prompts.splitlines() if line.strip()]
    styles, info = model.info.styles, model.info
    varied = [info.style_caption(styles[i % len(styles)], thing)
              for i, thing in enumerate(info.things)]   # fmt: skip
    return [*own, *varied][:PAIR_COUNT]


def _draw_all(model: BaseModel, prompts: Sequence[str], steps: int) -> tuple[list[Image.Image], float]:
    """One picture a prompt, one by one; the seconds of one do not count the first, which warms up."""
    pictures, seconds = [], []
    for i, prompt in enumerate(prompts):
        started = time.perf_counter()
        pictures += draw(model, DrawRequest(prompt=prompt, seed=FIRST_SEED + i, steps=steps))
        seconds.append(time.perf_counter() - started)
    return pictures, float(np.median(seconds[1:] or seconds))
