"""Calibration: the inputs of a model's layers while it draws, and the quantizers that fit them. No data is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers
from atelier.adapters.quantization.bit_policy import LayerBits, is_boundary_layer
from atelier.adapters.quantization.fake_quant_layers import FakeQuantSwitch, disable_fake_quant, find_fake_quant_layers
from atelier.adapters.quantization.quantizers import fit_input_quantizer
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.latent_cache import encode_text, tokenize

GUIDANCE = 3.0    # as in the Studio; it steers the trajectory and has no part in the loss
MAX_VALUES = 1024     # of a layer's input that are recorded in each call


@dataclass(frozen=True, slots=True)
class UnetCall:
    """One call of the UNet on a teacher's trajectory: unconditional and conditional branch, N pictures each."""

    timestep: int
    noisy: Tensor     # [2N, C, h, w]
    text: PromptEmbeddings        # of 2N prompts, the empty ones first
    prediction: Tensor    # [2N, C, h, w], the teacher's


@dataclass(frozen=True, slots=True)
class Student:
    """A model whose weights and inputs can be rounded (student) or not (teacher), and what it is validated on."""

    model: BaseModel
    switch: FakeQuantSwitch
    plan: dict[str, LayerBits]
    held_out: list[UnetCall]


@torch.no_grad()
def trajectory(
    model: BaseModel, switch: FakeQuantSwitch, prompts: Sequence[str], steps: int, generator: torch.Generator
) -> Iterator[UnetCall]:
    """Draw ``prompts`` with the teacher from pure noise, and yield every call of its UNet.

    DDIM with η = 1 (fresh noise in every step), so that two trajectories of a prompt soon differ.
    """
    model.scheduler.set_timesteps(steps)
    side = model.info.resolution // model.info.vae_scale_factor
    shape = (len(prompts), model.unet.config.in_channels, side, side)
    x = torch.randn(shape, generator=generator).to(model.device) * model.scheduler.init_noise_sigma
    with model.on_device(*model.text_encoders):
        text = encode_text(model, tokenize(model, [""] * len(prompts) + list(prompts)))
    for t in model.scheduler.timesteps.tolist():
        noisy = torch.cat([x, x])
        with disable_fake_quant(switch):
            prediction = predict_at(model, noisy, t, text)
        yield UnetCall(t, noisy, text, prediction)
        unconditional, conditional = prediction.float().chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        x = model.scheduler.step(guided, t, x, eta=1.0, generator=generator).prev_sample


def predict_at(model: BaseModel, noisy: Tensor, timestep: int, text: PromptEmbeddings) -> Tensor:
    """The UNet's prediction for a batch at one timestep."""
    side = model.info.resolution
    times = torch.full((len(noisy),), timestep, device=model.device)
    return model.predict(noisy, times, text, [(side, side, 0, 0, side, side)] * len(noisy))


def distillation_error(model: BaseModel, call: UnetCall) -> Tensor:
    """Mean squared difference between student and teacher; with its gradient where one is wanted."""
    prediction = predict_at(model, call.noisy, call.timestep, call.text)
    return (prediction.float() - call.prediction.float()).square().mean()


@torch.no_grad()
def relative_errors(model: BaseModel, calls: Sequence[UnetCall]) -> dict[int, float]:
    """Squared difference from the teacher over the teacher's squared prediction, by timestep, the noisiest first."""
    sums: dict[int, list[float]] = {}
    for call in calls:
        whole = call.prediction.float().square().mean()
        sums.setdefault(call.timestep, []).append(float(distillation_error(model, call) / whole))
    return {t: sum(errors) / len(errors) for t, errors in sums.items()}


@torch.no_grad()
def input_levels(
    model: BaseModel, switch: FakeQuantSwitch, calls: Sequence[UnetCall], timesteps: Sequence[int], *, search: bool
) -> ActivationQuantizers | None:
    """Quantizers of all layers' inputs, initially the same at every timestep; None where no input is rounded.

    Args:
        model: of learning layers.
        switch: its switch.
        calls: to calibrate with.
        timesteps: those that get an entry of their own.
        search: whether ranges are searched, or taken whole.
    """
    layers = {name: layer for name, layer in find_fake_quant_layers(model.unet).items() if layer.bits.inputs}
    if not layers:
        return None
    with disable_fake_quant(switch), _record_inputs(layers) as seen:
        for call in calls:
            predict_at(model, call.noisy, call.timestep, call.text)
    bits = [layer.bits.inputs for layer in layers.values()]
    found = [fit_input_quantizer(torch.cat(seen[name]), b, search=search) for name, b in zip(layers, bits, strict=True)]
    steps, zeros = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ActivationQuantizers(timesteps, steps, zeros, bits).to(model.device)


@contextmanager
def _record_inputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Some of every input of these layers, always with its smallest and largest value."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def look(_module: nn.Module, args: tuple[Any, ...], *, name: str) -> None:
        """Add some of a layer's input, with its extremes, to what was recorded."""
        values = args[0].detach().flatten().float()
        some = values[:: max(1, values.numel() // MAX_VALUES)]
        seen[name].append(torch.cat([some, values.min()[None], values.max()[None]]))

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(partial(look, name=name)))
        yield seen


@torch.no_grad()
def sensitivity_by_layer(model: BaseModel, switch: FakeQuantSwitch, calls: Sequence[UnetCall]) -> dict[str, float]:
    """The error in the UNet's prediction when one layer alone is rounded; without first and last, which keep 8 bits."""
    layers, alone, off = find_fake_quant_layers(model.unet), FakeQuantSwitch(), FakeQuantSwitch()
    off.on = False
    try:
        for layer in layers.values():
            layer.switch = off
        sensitivity: dict[str, float] = {}
        for name, layer in layers.items():
            if not is_boundary_layer(name):
                layer.switch = alone
                sensitivity[name] = sum(float(distillation_error(model, call)) for call in calls) / len(calls)
                layer.switch = off
        return sensitivity
    finally:
        for layer in layers.values():
            layer.switch = switch


@torch.no_grad()
def error_by_layer(model: BaseModel, switch: FakeQuantSwitch, calls: Sequence[UnetCall]) -> dict[str, float]:
    """‖rounded − whole‖ / ‖whole‖ of each layer's own output, on its inputs when the teacher draws."""
    layers = find_fake_quant_layers(model.unet)
    sums = {name: [0.0, 0.0] for name in layers}

    def look(layer: Any, args: tuple[Any, ...], output: Tensor, *, name: str) -> None:
        """Run the layer a second time with rounding on the same input, and add up both squares."""
        layer.switch = FakeQuantSwitch()
        rounded = type(layer).forward(layer, args[0])
        layer.switch = switch
        sums[name][0] += float((rounded - output).float().square().sum())
        sums[name][1] += float(output.float().square().sum())

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_hook(partial(look, name=name)))
        for call in calls:
            with disable_fake_quant(switch):
                predict_at(model, call.noisy, call.timestep, call.text)
    return {name: (off / whole) ** 0.5 if whole else 0.0 for name, (off, whole) in sums.items()}


def weights_by_layer(model: nn.Module, plan: Mapping[str, LayerBits]) -> dict[str, int]:
    """Number of weights of each layer in the plan."""
    return {name: model.get_submodule(name).weight.numel() for name in plan}   # type: ignore[union-attr, operator]
