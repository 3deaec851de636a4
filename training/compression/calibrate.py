"""What a model's layers see while it draws, and the quantizers of their inputs that follow from it. No data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atelier.adapters.quantization.activation_quantizers import InputLevels
from atelier.adapters.quantization.bit_policy import Bits, is_end
from atelier.adapters.quantization.fake_quant_layers import Switch, rounding_layers, unrounded
from atelier.adapters.quantization.quantizers import input_level
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.latent_cache import encode_text, tokenize

GUIDANCE = 3.0    # as the Studio draws; it steers the trajectory and has no part in the loss
VALUES = 1024     # of a layer's input that each call remembers


@dataclass(frozen=True, slots=True)
class Moment:
    """One call of the UNet on a teacher's way: wordless and worded branch, N pictures each."""

    timestep: int
    noisy: Tensor     # [2N, C, h, w]
    text: PromptEmbeddings        # of 2N captions, the wordless first
    answer: Tensor    # [2N, C, h, w], the teacher's


@dataclass(frozen=True, slots=True)
class Student:
    """A model that can be itself or rounded, and what it is measured on."""

    model: BaseModel
    switch: Switch
    plan: dict[str, Bits]
    held_out: list[Moment]


@torch.no_grad()
def trajectory(
    model: BaseModel, switch: Switch, prompts: Sequence[str], steps: int, generator: torch.Generator
) -> Iterator[Moment]:
    """Draw ``prompts`` with the teacher from pure noise, and pass on what its UNet was asked and answered.

    DDIM with η = 1 (fresh noise in every step), so that two trajectories of a prompt soon differ.
    """
    model.scheduler.set_timesteps(steps)
    side = model.info.resolution // model.info.factor
    shape = (len(prompts), model.unet.config.in_channels, side, side)
    x = torch.randn(shape, generator=generator).to(model.device) * model.scheduler.init_noise_sigma
    with model.on_device(*model.text_encoders):
        text = encode_text(model, tokenize(model, [""] * len(prompts) + list(prompts)))
    for t in model.scheduler.timesteps.tolist():
        noisy = torch.cat([x, x])
        with unrounded(switch):
            answer = answer_of(model, noisy, t, text)
        yield Moment(t, noisy, text, answer)
        plain, worded = answer.float().chunk(2)
        guided = plain + GUIDANCE * (worded - plain)
        x = model.scheduler.step(guided, t, x, eta=1.0, generator=generator).prev_sample


def answer_of(model: BaseModel, noisy: Tensor, timestep: int, text: PromptEmbeddings) -> Tensor:
    """The UNet's answer to a batch at one timestep."""
    side = model.info.resolution
    times = torch.full((len(noisy),), timestep, device=model.device)
    return model.predict(noisy, times, text, [(side, side, 0, 0, side, side)] * len(noisy))


def error_at(model: BaseModel, moment: Moment) -> Tensor:
    """Mean squared difference between student and teacher; with its gradient where one is wanted."""
    answer = answer_of(model, moment.noisy, moment.timestep, moment.text)
    return (answer.float() - moment.answer.float()).square().mean()


@torch.no_grad()
def relative_errors(model: BaseModel, moments: Sequence[Moment]) -> dict[int, float]:
    """Squared difference from the teacher over the teacher's squared answer, by timestep, the noisiest first."""
    sums: dict[int, list[float]] = {}
    for moment in moments:
        whole = moment.answer.float().square().mean()
        sums.setdefault(moment.timestep, []).append(float(error_at(model, moment) / whole))
    return {t: sum(errors) / len(errors) for t, errors in sums.items()}


@torch.no_grad()
def input_levels(
    model: BaseModel, switch: Switch, moments: Sequence[Moment], timesteps: Sequence[int], *, search: bool
) -> InputLevels | None:
    """Quantizers of all layers' inputs, alike at every timestep; None where no input is rounded.

    Args:
        model: of learning layers.
        switch: its switch.
        moments: what the layers are shown.
        timesteps: those that get an entry of their own.
        search: whether ranges are searched, or taken whole.
    """
    layers = {name: layer for name, layer in rounding_layers(model.unet).items() if layer.bits.inputs}
    if not layers:
        return None
    with unrounded(switch), _remembering(layers) as seen:
        for moment in moments:
            answer_of(model, moment.noisy, moment.timestep, moment.text)
    bits = [layer.bits.inputs for layer in layers.values()]
    found = [input_level(torch.cat(seen[name]), b, search=search) for name, b in zip(layers, bits, strict=True)]
    steps, zeros = (torch.cat(parts) for parts in zip(*found, strict=True))
    return InputLevels(timesteps, steps, zeros, bits).to(model.device)


@contextmanager
def _remembering(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Some of every input of these layers, always with its smallest and largest value."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def look(_module: nn.Module, args: tuple[Any, ...], *, name: str) -> None:
        values = args[0].detach().flatten().float()
        some = values[:: max(1, values.numel() // VALUES)]
        seen[name].append(torch.cat([some, values.min()[None], values.max()[None]]))

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(partial(look, name=name)))
        yield seen


@torch.no_grad()
def harm_by_layer(model: BaseModel, switch: Switch, moments: Sequence[Moment]) -> dict[str, float]:
    """The error that rounding each layer alone makes in the UNet's answer; the ends, which have 8 bits, left out."""
    layers, alone, off = rounding_layers(model.unet), Switch(), Switch()
    off.on = False
    try:
        for layer in layers.values():
            layer.switch = off
        harm: dict[str, float] = {}
        for name, layer in layers.items():
            if not is_end(name):
                layer.switch = alone
                harm[name] = sum(float(error_at(model, moment)) for moment in moments) / len(moments)
                layer.switch = off
        return harm
    finally:
        for layer in layers.values():
            layer.switch = switch


@torch.no_grad()
def error_by_layer(model: BaseModel, switch: Switch, moments: Sequence[Moment]) -> dict[str, float]:
    """‖rounded − whole‖ / ‖whole‖ of each layer's own output, on what it sees when the teacher draws."""
    layers = rounding_layers(model.unet)
    sums = {name: [0.0, 0.0] for name in layers}

    def look(layer: Any, args: tuple[Any, ...], output: Tensor, *, name: str) -> None:
        layer.switch = Switch()
        rounded = type(layer).forward(layer, args[0])
        layer.switch = switch
        sums[name][0] += float((rounded - output).float().square().sum())
        sums[name][1] += float(output.float().square().sum())

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_hook(partial(look, name=name)))
        for moment in moments:
            with unrounded(switch):
                answer_of(model, moment.noisy, moment.timestep, moment.text)
    return {name: (off / whole) ** 0.5 if whole else 0.0 for name, (off, whole) in sums.items()}


def weights_by_layer(model: nn.Module, plan: Mapping[str, Bits]) -> dict[str, int]:
    """How many weights each planned layer has."""
    return {name: model.get_submodule(name).weight.numel() for name in plan}   # type: ignore[union-attr, operator]
