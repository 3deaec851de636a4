"""Layers that learn to be rounded, and the levels of their inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.core.settings import SettingError
from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers
from atelier.adapters.quantization.bit_policy import LayerBits, assign_bits, raise_sensitive_layers
from atelier.adapters.quantization.fake_quant_layers import (
    FakeQuantLayer,
    FakeQuantSwitch,
    add_activation_quantizers,
    add_fake_quant,
    cache_quantized_weights,
    disable_fake_quant,
    find_fake_quant_layers,
    trained_tensors,
)
from atelier.adapters.quantization.quantizers import fit_input_quantizer, fit_weight_quantizer

TIMES = (99, 499, 999)
LOW = LayerBits(4, 8)


class Net(nn.Module):
    """A convolution and a linear layer, called as a UNet is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor, timestep: Tensor | int | float) -> Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def student(bits: LayerBits = LOW, *, rank: int = 2, seed: int = 0) -> tuple[Net, FakeQuantSwitch]:
    torch.manual_seed(seed)
    net = Net()
    switch = add_fake_quant(net, dict.fromkeys(("conv", "linear"), bits), rank=rank, search=False)
    if bits.inputs:
        steps, zeros = torch.tensor([0.02, 0.01]), torch.tensor([120.0, 3.0])
        add_activation_quantizers(net, ActivationQuantizers(TIMES, steps, zeros, [bits.inputs, bits.inputs]))
    return net, switch


def batch(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def by_hand(values: Any, step: Any, zero: Any, bits: int) -> np.ndarray:
    """The quantizer, in numpy."""
    codes = np.clip(np.rint(values / step) + zero, 0, 2**bits - 1)
    return (codes - zero) * step


def test_switched_off_it_is_the_teacher_bit_for_bit():
    torch.manual_seed(0)
    teacher, (net, switch) = Net(), student(LayerBits(2, 4))
    with disable_fake_quant(switch):
        assert torch.equal(net(batch(), 99), teacher(batch(), 99))
    assert not torch.allclose(net(batch(), 99), teacher(batch(), 99))


@pytest.mark.parametrize("bits", [LayerBits(8, 8), LayerBits(4, 8), LayerBits(4, 4), LayerBits(2, 8), LayerBits(4, 0)])
def test_with_up_zero_it_is_naive_quantization(bits: LayerBits):
    """Min-max ranges by channel, worked out in numpy; not one value differs."""
    net, _ = student(bits)
    for layer in find_fake_quant_layers(net).values():
        weight = layer.weight.detach().numpy()
        rows = weight.reshape(len(weight), -1)
        if bits.weight == 8:
            step, zero = np.abs(rows).max(1) / np.float32(127), np.float32(128) + np.zeros(len(rows), np.float32)
        else:
            low, high = rows.min(1).clip(max=0), rows.max(1).clip(min=0)
            step = (high - low) / np.float32(2**bits.weight - 1)
            zero = np.rint(-low / step)
        shape = (-1, *[1] * (weight.ndim - 1))
        expected = by_hand(weight, step.reshape(shape), zero.reshape(shape), bits.weight)
        assert np.abs(layer.quantized_weight().detach().numpy() - expected).max() == 0
        assert all(len(np.unique(row)) <= 2**bits.weight for row in expected.reshape(len(weight), -1))


def test_inputs_are_rounded_with_the_levels_of_their_timestep():
    net, _ = student()
    layer = find_fake_quant_layers(net)["conv"]
    levels = net.input_levels
    assert isinstance(levels, ActivationQuantizers)
    with torch.no_grad():
        for i, factor in enumerate((1.0, 2.0, 3.0)):
            levels.factors[i].fill_(factor)
    for timestep, factor in ((99, 1.0), (499, 2.0), (999, 3.0), (299, 1.5), (1, 1.0), (1200, 3.0)):
        net(batch(), timestep)
        step, zero = np.float32(0.02) * np.float32(factor), np.float32(120)
        expected = by_hand(batch().numpy(), step, zero, 8)
        assert_close(layer.quantize_input(batch()).detach(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)


def test_a_batch_of_several_timesteps_is_rounded_picture_by_picture():
    net, _ = student()
    assert isinstance(net.input_levels, ActivationQuantizers)
    with torch.no_grad():
        net.input_levels.factors[0].fill_(9.0)
    together = net(batch(2), torch.tensor([99, 999]))
    apart = [net(batch(2)[i : i + 1], torch.tensor([t])) for i, t in enumerate((99, 999))]
    assert_close(together, torch.cat(apart))
    assert not torch.allclose(together, net(batch(2), 999))


def test_only_the_step_sizes_of_the_current_timestep_learn():
    net, _ = student()
    net(batch(), torch.tensor(499)).square().sum().backward()
    levels = net.input_levels
    assert isinstance(levels, ActivationQuantizers)
    assert [factor.grad is not None for factor in levels.factors] == [False, True, False]
    assert [zero.grad is not None for zero in levels.zeros] == [False, True, False]
    grad = levels.factors[1].grad
    assert grad is not None
    assert grad.abs().min() > 0
    # Adam remembers where it was going: without a gradient it must not go on there.
    optimizer = torch.optim.AdamW(levels.parameters(), lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    net(batch(), 99).square().sum().backward()
    before = levels.factors[1].detach().clone()
    optimizer.step()
    assert torch.equal(levels.factors[1], before)


def test_zero_points_are_whole_numbers_in_use_and_learn_all_the_same():
    levels = ActivationQuantizers(TIMES, torch.tensor([0.1]), torch.tensor([3.4]), [4])
    step, zero = levels.layer_parameters(0, 2)
    assert (step.item(), zero.item()) == pytest.approx((0.1, 3.0))
    zero.backward()
    assert [z.grad is not None for z in levels.zeros] == [True, False, False]
    with torch.no_grad():
        levels.zeros[0].fill_(99.0)
    assert levels.layer_parameters(0, 2)[1].item() == 15
    assert float(levels.table()[1].max()) == 15


def test_gradients_of_the_pair_are_those_of_the_sum_where_it_is_not_clipped():
    """∂L/∂up = (M ∘ G) downᵀ and ∂L/∂down = upᵀ (M ∘ G), with G = ∂L/∂Ŵ and M where no code is clipped."""
    net, _ = student(LayerBits(2, 0))
    layer = net.double().linear
    assert isinstance(layer, FakeQuantLayer)
    assert layer.up is not None
    assert layer.down is not None
    with torch.no_grad():
        layer.up.normal_(generator=torch.Generator().manual_seed(1))
        layer.steps.mul_(0.5)   # so that some are clipped
    towards = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (layer.quantized_weight() * towards).sum().backward()
    whole = layer.weight + layer.up @ layer.down
    codes = (whole / layer.steps).round() + layer.zeros
    inside = (codes >= 0) & (codes <= 3)
    assert 0.1 < inside.double().mean() < 0.9
    assert_close(layer.up.grad, (inside * towards) @ layer.down.T, rtol=1e-9, atol=1e-9)
    assert_close(layer.down.grad, layer.up.T @ (inside * towards), rtol=1e-9, atol=1e-9)


def test_sparing_memory_changes_no_gradient():
    found = []
    for sparing in (False, True):
        net, switch = student(LayerBits(4, 4))
        switch.recompute_weights = sparing
        net(batch(), 499).square().sum().backward()
        found.append({name: value.grad for name, value in trained_tensors(net).items() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name])


def test_settled_weights_are_the_same_and_go_again():
    net, _ = student(LayerBits(2, 4))
    expected = net(batch(), 99)
    with cache_quantized_weights(net), torch.no_grad():
        assert torch.equal(net(batch(), 99), expected)
    assert all(layer.cached_weight is None for layer in find_fake_quant_layers(net).values())


def test_a_search_rounds_better_than_the_whole_range():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(4))
    values[0] = 40.0   # an outlier that takes the whole range for itself
    errors = []
    for search in (False, True):
        steps, zeros = fit_input_quantizer(values, 4, search=search)
        rounded = by_hand(values.numpy(), steps.numpy(), zeros.numpy(), 4)
        errors.append(float(np.square(rounded - values.numpy())[1:].mean()))
    assert errors[1] < 0.2 * errors[0]


def test_a_channel_of_zeros_stays_zeros():
    weight = torch.zeros(2, 3)
    weight[1] = torch.tensor([1.0, -2.0, 0.5])
    for bits in (2, 4, 8):
        steps, zeros = fit_weight_quantizer(weight, bits, search=True)
        assert (steps > 0).all()
        rounded = by_hand(weight.numpy(), steps[:, None].numpy(), zeros[:, None].numpy(), bits)
        assert (rounded[0] == 0).all()


def test_the_worst_layers_are_raised_as_far_as_room_goes():
    plan = {"a": LayerBits(4, 8), "b": LayerBits(4, 8), "c": LayerBits(4, 8), "end": LayerBits(8, 8)}
    sizes = {"a": 100, "b": 10, "c": 10, "end": 80}
    assert raise_sensitive_layers(plan, {"a": 1.0, "b": 0.9, "c": 0.1}, sizes, 0.05) == {**plan, "b": LayerBits(8, 8)}
    assert raise_sensitive_layers(plan, {"a": 1.0, "b": 0.9, "c": 0.1}, sizes, 0.0) == plan


def test_an_unknown_preset_is_refused():
    with pytest.raises(SettingError, match="w8a8, w6a8"):
        assign_bits(nn.Sequential(nn.Linear(2, 2)), "w3a3")
