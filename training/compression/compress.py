"""From a base model and adapters to a compressed base model: the work of a compression job."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atelier.adapters.attach.merge import merge
from atelier.adapters.core.atomic_write import atomic_folder
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.weight_only_int8 import QuantizedLayer
from atelier.adapters.formats.adapter_info import INGREDIENTS_ENTRY
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.quantization.bit_policy import LayerBits, assign_bits, raise_sensitive_layers
from atelier.adapters.quantization.dynamic_quantizers import DynamicQuantizers
from atelier.adapters.quantization.fake_quant_layers import add_activation_quantizers, add_fake_quant
from atelier.adapters.quantization.packed import save_packed
from atelier.training.base_models.base_info import PACKED_UNET, BaseError, BaseInfo
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.compression.calibrate import (
    Student,
    input_levels,
    relative_errors,
    sensitivity_by_layer,
    trajectory,
    weights_by_layer,
)
from atelier.training.compression.distill import Distillation, DistillationConfig
from atelier.training.compression.report import draw_pairs, write_report
from atelier.training.config.base_options import PLAIN_BASE
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Event, Finished, Preparing, Warned
from atelier.training.config.run_folder import RunFolder
from atelier.training.loop.training_loop import Controls

RESULT = "compressed"           # in the run folder, until a person takes it
CALIBRATION_SEED, HELD_OUT_SEED = 10_001, 20_001
SENSITIVITY_CALLS = 3           # of the UNet, with which the sensitivity of each layer is measured


def compress(
    folder: RunFolder, config: CompressConfig, controls: Controls, device: torch.device, *, resume: bool
) -> Iterator[Event]:
    """Carry out the recipe; the result stays in the run folder until a person accepts it.

    Raises:
        BaseError, FileError, MountError: the base or an adapter can't be used.
        FloatingPointError: learning became unstable.
    """
    started = time.monotonic()
    yield Preparing("Loading the base model")
    model = load(config.base, device, torch.float32, options=config.base_options)
    if any(isinstance(layer, QuantizedLayer) for layer in model.unet.modules()):
        raise BaseError(f"{config.base} is already compressed. Compress the base model that it was made from.")
    mix = Mix(tuple((load_adapter(Path(path), model.device), strength) for path, strength in config.adapters.items()))
    with ExitStack() as stack:
        stack.enter_context(merge(model.models(), mix))
        yield Preparing("Measuring activations")
        student = make_student(model, config)
        before = relative_errors(model, student.held_out)
        own = distillation_config(config, model.info)
        learning = Distillation(model, student.switch, own, student.held_out, folder.path)
        if resume and not learning.resume():
            yield Warned("There was no complete checkpoint to resume from, so training starts again.")
        yield from learning.events(controls)
        if not learning.finished:
            return
        yield Preparing("Saving and comparing")
        out = write_compressed(model, config, folder.path / RESULT)
        pictures = draw_pairs(student.model, student.switch, out, config)
        write_report(folder.path, config, student, pictures, before)
    yield Finished(learning.best_step, str(out), time.monotonic() - started)


def make_student(model: BaseModel, config: CompressConfig) -> Student:
    """Turn a model into its own student, calibrated on drawings of its own."""
    plan = assign_bits(model.unet, config.preset, outliers=config.outliers)
    _round_others_to_half(model.unet, plan)
    student = _calibrated(model, config, plan)
    if config.mixed:
        calls = student.held_out[:: max(1, len(student.held_out) // SENSITIVITY_CALLS)]
        sensitivity = sensitivity_by_layer(model, student.switch, calls)
        plan = raise_sensitive_layers(plan, sensitivity, weights_by_layer(model.unet, plan), config.mixed)
        student = _calibrated(model, config, plan)
    student.switch.recompute_weights = config.sparing
    return student


def _calibrated(model: BaseModel, config: CompressConfig, plan: dict[str, LayerBits]) -> Student:
    torch.manual_seed(config.seed)   # of the pairs' initial values
    switch = add_fake_quant(model.unet, plan, rank=config.rank if config.steps else 0, search=config.search)
    prompts = prompts_of(config, model.info)
    seen, held_out = (
        list(trajectory(model, switch, _cycle_prompts(prompts, seed, config.pictures), config.timesteps,
                        torch.Generator().manual_seed(config.seed + seed)))
        for seed in (CALIBRATION_SEED, HELD_OUT_SEED)
    )   # fmt: skip
    timesteps = [call.timestep for call in seen] if config.per_timestep else [0]
    if config.dynamic:
        inputs = DynamicQuantizers([bits.inputs for bits in plan.values() if bits.inputs]).to(model.device)
    else:
        inputs = input_levels(model, switch, seen, timesteps, search=config.search)
    if inputs is not None:
        add_activation_quantizers(model.unet, inputs)
    return Student(model, switch, plan, held_out)


@torch.no_grad()
def _round_others_to_half(unet: nn.Module, plan: dict[str, LayerBits]) -> None:
    """Layers that are not quantized are stored in float16. Rounded now, they are the same for teacher and student."""
    quantized = {f"{name}.weight" for name in plan}
    for name, parameter in unet.named_parameters():
        if name not in quantized:
            parameter.copy_(parameter.half())


def distillation_config(config: CompressConfig, info: BaseInfo) -> DistillationConfig:
    """What a compression's configuration says to the distillation, with prompts that suit the base."""
    return DistillationConfig(prompts=prompts_of(config, info), steps=config.updates, timesteps=config.timesteps,
                  pictures=config.pictures, scale_aware=config.scale_aware, seed=config.seed)   # fmt: skip


def prompts_of(config: CompressConfig, info: BaseInfo) -> tuple[str, ...]:
    """The person's prompts, then things the base knows in every style it knows."""
    own = [line.strip() for line in config.prompts.splitlines() if line.strip()]
    in_styles = [info.style_caption(style, thing) for thing in info.things for style in info.styles]
    return (*own, *info.prior_prompts, *in_styles)


def _cycle_prompts(prompts: Sequence[str], seed: int, count: int) -> list[str]:
    return [prompts[(seed + i) % len(prompts)] for i in range(count)]


def write_compressed(model: BaseModel, config: CompressConfig, out: Path) -> Path:
    """Write the whole model as a diffusers folder whose UNet is packed in integer codes; returns the folder."""
    with atomic_folder(out, replace=True) as partial:
        _write_parts(model, config, partial)
    return out


def _write_parts(model: BaseModel, config: CompressConfig, folder: Path) -> None:
    parts: dict[str, Any] = {**model.models(), "vae": model.vae, "scheduler": model.scheduler,
                             "tokenizer": model.tokenizer, "tokenizer_2": model.tokenizer_2}   # fmt: skip
    for name, part in parts.items():
        if name == "unet" or part is None:
            continue
        half: Any = copy.deepcopy(part).half() if isinstance(part, nn.Module) else part
        half.save_pretrained(folder / name)
    model.pipeline.save_config(folder)
    model.unet.save_config(folder / "unet")
    # Named only where there are any: what an older version began must still be continued.
    options = {} if config.base_options == PLAIN_BASE else asdict(config.base_options)
    ingredients = json.dumps({"base": config.base, "adapters": config.adapters, **options})
    save_packed(model.unet, folder / "unet" / PACKED_UNET, config.preset, {INGREDIENTS_ENTRY: ingredients})
    words = model.info.folder / "prompts.toml"
    if words.exists():
        shutil.copy(words, folder)


def planned_bytes(unet: nn.Module, preset: str) -> tuple[int, int]:
    """Bytes of a UNet in float16, and compressed: counted from its shapes, before anything is made."""
    plan = assign_bits(unet, preset)
    whole = 2 * sum(parameter.numel() for parameter in unet.parameters())
    packed = whole
    for name, each in plan.items():
        weight = unet.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        packed += weight.numel() * each.weight // 8 - 2 * weight.numel() + 5 * len(weight)   # step size and zero point
    return whole, packed
