"""Distillation: where its pictures come from, what learns how fast, and that it helps."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.quantization.bit_policy import LayerBits, assign_bits, is_boundary_layer
from atelier.adapters.quantization.fake_quant_layers import (
    FakeQuantSwitch,
    add_fake_quant,
    find_fake_quant_layers,
    trained_tensors,
)
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.compression.calibrate import (
    GUIDANCE,
    Student,
    distillation_error,
    error_by_layer,
    predict_at,
    relative_errors,
    sensitivity_by_layer,
    trajectory,
)
from atelier.training.compression.compress import distillation_config, make_student, prompts_of
from atelier.training.compression.distill import Distillation, DistillationConfig, make_optimizer
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Stepped, Validated
from atelier.training.loop.training_loop import Controls
from tests.families import configuration

TINY: dict[str, Any] = {"timesteps": 4, "rank": 4, "pictures": 1}
NOBODY = Controls(lambda _: None, lambda: False)


@pytest.fixture
def student(base: Path) -> Callable[..., tuple[Student, CompressConfig]]:
    def make(**values: Any) -> tuple[Student, CompressConfig]:
        config = CompressConfig(**{**TINY, "preset": "w4a4", "steps": 16, **values})
        return make_student(load(str(base), "cpu"), config), config

    return make


def learning(student: Student, config: CompressConfig, folder: Path) -> Distillation:
    own = distillation_config(config, student.model.info)
    return Distillation(student.model, student.switch, own, student.held_out, folder)


def test_the_layers_of_stable_diffusion():
    """On the true UNet of SD 1.5, without its weights: the figures of the method's sheet."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(configuration("sd1", "unet"))
    plan = assign_bits(unet, "w4a8")
    low = [name for name, bits in plan.items() if bits == LayerBits(4, 8)]
    ends = [name for name, bits in plan.items() if bits == LayerBits(8, 8)]
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    whole = layers.keys() - plan.keys()
    assert set(ends) == {"conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_out"}
    assert len(layers) == 282
    assert (len(low), len(ends), len(whole)) == (261, 4, 17)
    assert sum(name.endswith("conv_shortcut") for name in whole) == 14
    assert sum(name.endswith("downsamplers.0.conv") for name in whole) == 3
    assert round(sum(layers[name].weight.numel() for name in low) / 1e6, 1) == 814.4
    assert sum(len(layers[name].weight) for name in low) == 300_800
    # In 4 bits throughout, inputs that are known for outliers have 8: both of each cross-attention, one feed-forward.
    four, bare = (assign_bits(unet, "w4a4", outliers=outliers) for outliers in (True, False))
    careful = [name for name, bits in four.items() if bits == LayerBits(4, 8)]
    assert {name.rsplit("blocks.0.", 1)[-1] for name in careful} == {"attn2.to_k", "attn2.to_v", "ff.net.2"}
    assert len(careful) == 16 * 3
    assert sum(bits == LayerBits(4, 4) for bits in four.values()) == 261 - 48
    assert sum(bits == LayerBits(4, 4) for bits in bare.values()) == 261
    assert not any(bits.inputs for bits in assign_bits(unet, "w4").values())


def test_it_learns_on_the_teachers_own_drawing(base: Path):
    """The latents are those of diffusers' own pipeline with the same noise, guidance and η."""
    model = load(str(base), "cpu")
    off = FakeQuantSwitch()
    calls = list(trajectory(model, off, ["a red hat"], 4, torch.Generator().manual_seed(5)))
    latents: list[Tensor] = []

    def keep(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].clone())
        return values

    model.pipeline(prompt="a red hat", num_inference_steps=4, guidance_scale=GUIDANCE, eta=1.0, output_type="latent",
                   generator=torch.Generator().manual_seed(5), callback_on_step_end=keep)   # fmt: skip
    assert [call.timestep for call in calls] == model.scheduler.timesteps.tolist()
    for call, expected in zip(calls[1:], latents[:-1], strict=True):
        for half in call.noisy.chunk(2):
            assert_close(half, expected, rtol=1e-4, atol=1e-5)


def test_no_data_is_touched(
    student: Callable[..., tuple[Student, CompressConfig]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No file is opened for reading while it learns, and no picture or data set is made."""
    ready, config = student(steps=4)
    run = learning(ready, config, tmp_path)

    def refuse(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"data: {arguments}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(torch.utils.data.Dataset, "__new__", refuse)
    events = list(run.events(NOBODY))
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]


def test_learning_lowers_the_error_on_drawings_it_has_not_seen(
    student: Callable[..., tuple[Student, CompressConfig]], tmp_path: Path
):
    ready, config = student(steps=32, input_ranges="calibrated")
    unseen = list(trajectory(ready.model, ready.switch, ["a kite"], 4, torch.Generator().manual_seed(77)))
    before = _error(ready.model, unseen)
    events = list(learning(ready, config, tmp_path).events(NOBODY))
    assert [event.step for event in events if isinstance(event, Validated)] == list(range(0, config.steps + 1, 4))
    assert _error(ready.model, unseen) < 0.99 * before


@torch.no_grad()
def _error(model: BaseModel, calls: list[Any]) -> float:
    return sum(distillation_error(model, call).item() for call in calls)


def test_step_sizes_come_to_differ_over_time_and_each_belongs_to_its_own(
    student: Callable[..., tuple[Student, CompressConfig]], tmp_path: Path
):
    ready, config = student(steps=24, input_ranges="calibrated")
    list(learning(ready, config, tmp_path).events(NOBODY))
    levels: Any = ready.model.unet.input_levels
    steps = levels.start * torch.stack([factor.detach() for factor in levels.factors])
    assert (steps.std(0) / steps.mean(0)).max() > 0.005
    calls = ready.held_out
    own = _error(ready.model, calls)
    with torch.no_grad():
        turned = [factor.detach().clone() for factor in levels.factors]
        for factor, other in zip(levels.factors, [*turned[2:], *turned[:2]], strict=True):
            factor.copy_(other)
    assert _error(ready.model, calls) > own


def test_ranges_of_each_inputs_own_are_better_than_calibrated_ones_and_learn(
    student: Callable[..., tuple[Student, CompressConfig]], tmp_path: Path
):
    """W4A4 has them by itself, W4A8 has not."""
    fixed, _ = student(steps=0, input_ranges="calibrated")
    unseen = list(trajectory(fixed.model, fixed.switch, ["a kite"], 4, torch.Generator().manual_seed(77)))
    calibrated = _error(fixed.model, unseen)
    ready, config = student(steps=16)
    assert config.dynamic and not CompressConfig(preset="w4a8").dynamic and not CompressConfig(preset="w4").dynamic
    assert _error(ready.model, unseen) < calibrated
    list(learning(ready, config, tmp_path).events(NOBODY))
    clips: Any = ready.model.unet.input_levels.clips
    assert not torch.equal(clips.detach(), torch.ones(len(clips)))


def test_the_best_state_is_kept_and_never_worse_than_calibration(
    student: Callable[..., tuple[Student, CompressConfig]], tmp_path: Path
):
    ready, config = student(steps=8)
    run = learning(ready, config, tmp_path)
    for group in run.optimizer.param_groups:
        group["initial_lr"] *= 1000   # learning that destroys
    before = _error(ready.model, ready.held_out)
    validated = [event for event in run.events(NOBODY) if isinstance(event, Validated)]
    assert validated[-1].loss > validated[0].loss
    assert run.best_step == 0
    assert _error(ready.model, ready.held_out) == pytest.approx(before)


def test_both_branches_at_once_or_one_after_the_other(student: Callable[..., tuple[Student, CompressConfig]]):
    ready, _ = student()
    call = ready.held_out[1]
    with torch.no_grad():
        together = predict_at(ready.model, call.noisy, call.timestep, call.text)
        halves = [type(call.text)(features) for features in call.text.features.chunk(2)]
        apart = [predict_at(ready.model, noisy, call.timestep, text)
                 for noisy, text in zip(call.noisy.chunk(2), halves, strict=True)]   # fmt: skip
    assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_recomputing_blocks_in_the_backward_pass_changes_no_gradient(
    student: Callable[..., tuple[Student, CompressConfig]]
):
    ready, _ = student()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            ready.model.unet.enable_gradient_checkpointing()
            ready.model.unet.train()
        distillation_error(ready.model, ready.held_out[2]).backward()
        trained = trained_tensors(ready.model.unet)
        found.append({name: value.grad for name, value in trained.items() if value.grad is not None})
        ready.model.unet.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-7)


def test_errors_by_timestep_and_layer(student: Callable[..., tuple[Student, CompressConfig]]):
    ready, _ = student(preset="w2a8")
    errors = relative_errors(ready.model, ready.held_out)
    assert list(errors) == [call.timestep for call in ready.held_out]
    by_layer = error_by_layer(ready.model, ready.switch, ready.held_out[:2])
    ends = [by_layer[name] for name in by_layer if is_boundary_layer(name)]
    others = [by_layer[name] for name in by_layer if not is_boundary_layer(name)]
    assert max(ends) < min(others)   # 8 bits against 2
    harm = sensitivity_by_layer(ready.model, ready.switch, ready.held_out[1:2])
    assert harm.keys() == {name for name in by_layer if not is_boundary_layer(name)}
    assert all(value > 0 for value in harm.values())
    assert sum(harm.values()) > 0.1 * _error(ready.model, ready.held_out[1:2])
    assert all(layer.switch is ready.switch for layer in find_fake_quant_layers(ready.model.unet).values())


def test_the_persons_prompts_come_first(model: BaseModel):
    config = CompressConfig(prompts="a red hat\n\n  a kite ")
    prompts = prompts_of(config, model.info)
    assert prompts[:2] == ("a red hat", "a kite")
    assert len(prompts) == 2 + len(model.info.things) * len(model.info.styles)


# --- learning rates in proportion to step sizes: a chain whose layers' scales are far apart --------------------------

SPREAD = (20.0, 1 / 20, 20.0, 1 / 20)


def chain(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 64, bias=False) for _ in SPREAD]
    with torch.no_grad():
        for layer, factor in zip(layers, SPREAD, strict=True):
            layer.weight.mul_(factor)
    return nn.Sequential(*layers)


def taught(seed: int, rule: str, rank: int = 8) -> tuple[float, list[float]]:
    """Relative output error after 300 updates, and the share of integer codes that changed in each layer."""
    teacher, net = chain(seed), chain(seed)
    add_fake_quant(net, dict.fromkeys("0123", LayerBits(4, 0)), rank=rank, search=False)
    optimizer = make_optimizer(net, DistillationConfig(prompts=(), steps=300, scale_aware=rule == "aware"))
    if rule == "smallest":
        means = [float(layer.steps.detach().mean()) for layer in find_fake_quant_layers(net).values()]
        for group in optimizer.param_groups[::2]:
            group["initial_lr"] *= min(means) / (sum(means) / len(means))
    for group in optimizer.param_groups[1::2]:
        group["initial_lr"] = 0.0   # step sizes that move change codes as well, alike in all layers
    generator = torch.Generator().manual_seed(seed)
    before = [_codes(layer) for layer in find_fake_quant_layers(net).values()]
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - step / 300)
        x = torch.randn(64, 64, generator=generator)
        (net(x) - teacher(x)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    x = torch.randn(512, 64, generator=generator)
    with torch.no_grad():
        error = float((net(x) - teacher(x)).norm() / teacher(x).norm())
    after = [_codes(layer) for layer in find_fake_quant_layers(net).values()]
    return error, [float((a != b).float().mean()) for a, b in zip(before, after, strict=True)]


@torch.no_grad()
def _codes(layer: Any) -> Tensor:
    return ((layer.updated_weight() / layer.steps).round() + layer.zeros).clamp(0, 15)


@pytest.mark.slow
def test_rates_in_proportion_to_step_sizes_move_all_layers_alike():
    found = {rule: [taught(seed, rule) for seed in range(2)] for rule in ("smallest", "even", "aware")}
    error = {rule: sum(each for each, _ in runs) for rule, runs in found.items()}
    spread = {rule: [max(moved) / max(min(moved), 1e-4) for _, moved in runs] for rule, runs in found.items()}
    assert max(spread["aware"]) < 3
    assert min(spread["smallest"]) > 50
    assert error["aware"] < error["even"]
    assert error["aware"] < error["smallest"]


@pytest.mark.slow
def test_pairs_learn_more_than_step_sizes_alone():
    """QALoRA against LSQ, after as many updates."""
    assert taught(0, "aware")[0] < 0.9 * _steps_alone(0)


def _steps_alone(seed: int) -> float:
    teacher, net = chain(seed), chain(seed)
    add_fake_quant(net, dict.fromkeys("0123", LayerBits(4, 0)), rank=0, search=False)
    layers = list(find_fake_quant_layers(net).values())
    # The best of several rates: it is the method that is compared, not the rate.
    return min(_lsq(teacher, net, layers, rate) for rate in (1e-4, 1e-3, 5e-3))


def _lsq(teacher: nn.Module, net: nn.Module, layers: list[Any], rate: float) -> float:
    start = [layer.steps.detach().clone() for layer in layers]
    optimizer = torch.optim.AdamW([{"params": [layer.steps], "lr": rate * float(layer.steps.detach().mean())}
                                   for layer in layers], weight_decay=0.0)   # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        x = torch.randn(64, 64, generator=generator)
        (net(x) - teacher(x)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    x = torch.randn(512, 64, generator=generator)
    with torch.no_grad():
        error = float((net(x) - teacher(x)).norm() / teacher(x).norm())
        for layer, steps in zip(layers, start, strict=True):
            layer.steps.copy_(steps)
    return error


def test_the_rate_of_a_pair_over_its_mean_step_size_is_the_same_in_all_layers(
    student: Callable[..., tuple[Student, CompressConfig]]
):
    ready, _ = student()
    unet = ready.model.unet
    optimizer = make_optimizer(unet, DistillationConfig(prompts=(), steps=16_000))
    layers = {id(layer.up): layer for layer in find_fake_quant_layers(unet).values() if layer.up is not None}
    ratios = [group["lr"] / float(layers[id(group["params"][0])].steps.detach().mean())
              for group in optimizer.param_groups if id(group["params"][0]) in layers]   # fmt: skip
    assert len(ratios) == len(layers)
    assert ratios == pytest.approx([1 / 2500] * len(layers))
