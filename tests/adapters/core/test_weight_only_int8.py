"""Layers in 8 bits: how far they are off, and that everything else is as with the weights they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import MountError, mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.core.weight_only_int8 import Int8Conv2d, Int8Layer, Int8Linear, quantize_to_int8, weight_shape
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import KINDS, create_adapters

X = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A convolution, a strided one, one in groups, and two linear layers, one of them without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 8, 3, stride=2, padding=1, dilation=1, groups=4)
        self.to_q = nn.Linear(9, 16, bias=False)
        self.to_v = nn.Linear(16, 5)

    def forward(self, x: Tensor, timestep: int = 500) -> Tensor:
        hidden = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
        return self.to_v(torch.tanh(self.to_q(hidden.flatten(2))))


@pytest.fixture
def net() -> Net:
    return Net().requires_grad_(False)


@pytest.fixture
def small(net: Net) -> Net:
    """The net in 8 bits."""
    small = copy.deepcopy(net)
    quantize_to_int8(small)
    return small


@pytest.fixture
def stands_for(net: Net, small: Net) -> Net:
    """The net with the weights that the one in 8 bits stands for, as ordinary layers."""
    twin = copy.deepcopy(net)
    for layer, other in zip(twin.children(), small.children(), strict=True):
        layer.weight.data = other.weight.clone()   # type: ignore[union-attr]
    return twin


def test_every_weight_is_at_most_half_a_step_off(net: Net, small: Net):
    for layer, other in zip(net.children(), small.children(), strict=True):
        step = layer.weight.abs().flatten(1).amax(1) / 127
        off = (layer.weight - other.weight).abs().flatten(1).amax(1)
        assert (off <= 0.5001 * step).all()
        assert (off > 0.3 * step).any()   # it is rounded


def test_layers_stay_what_they_were(net: Net, small: Net):
    assert [type(layer) for layer in small.children()] == [Int8Conv2d, Int8Conv2d, Int8Linear, Int8Linear]
    assert all(isinstance(layer, nn.Linear | nn.Conv2d) for layer in small.children())
    shapes = [tuple(layer.weight.shape) for layer in net.children()]   # type: ignore[union-attr]
    assert [weight_shape(layer) for layer in small.children()] == shapes
    assert find_targets({"unet": small}, "all") == find_targets({"unet": net}, "all")
    assert not [name for name, _ in small.named_parameters() if name.endswith("weight")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_takes_a_byte(net: Net, dtype: torch.dtype):
    net.to(dtype)
    quantize_to_int8(net)
    assert {layer.codes.dtype for layer in net.children()} == {torch.int8}
    assert {layer.weight.dtype for layer in net.children()} == {dtype}
    assert sum(t.nbytes for t in net.state_dict().values()) < sum(layer.codes.numel() for layer in net.children()) + 400


def test_small_weights_in_half_precision_keep_their_shape():
    layer = nn.Sequential(nn.Linear(64, 4).half())
    with torch.no_grad():
        layer[0].weight.mul_(1e-2)
        layer[0].weight[0] = 0
    before = layer[0].weight.detach().clone().float()
    quantize_to_int8(layer)
    off = (layer[0].weight.float() - before).abs().amax(1)
    assert off[0] == 0
    assert (off <= 0.01 * before.abs().amax(1)).all()


def test_unusual_layers_stay_whole():
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Conv2d(2, 2, 3, padding="same"),
                        nn.Conv1d(2, 2, 3))   # fmt: skip
    quantize_to_int8(net)
    assert not any(isinstance(layer, Int8Layer) for layer in net)


def test_the_answer_and_the_gradient_are_those_of_the_weights_it_stands_for(small: Net, stands_for: Net):
    answers = []
    for model in (small, stands_for):
        x = X.clone().requires_grad_(True)
        y = model(x)
        y.square().sum().backward()
        answers.append((y.detach(), x.grad))
    torch.testing.assert_close(answers[0], answers[1])


def test_no_weight_is_kept_for_the_backward_pass(small: Net, stands_for: Net):
    def kept(model: Net) -> set[tuple[int, ...]]:
        shapes = set()

        def keep(tensor: Tensor) -> Tensor:
            shapes.add(tuple(sorted(tensor.shape)))
            return tensor

        adapters = some("lora", model)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), mount({"unet": model}, alone(adapters)):
            model(X.clone().requires_grad_(True))
        return shapes

    # In groups an update is dense, and of the weight's own shape.
    weights = {tuple(sorted(weight_shape(layer))) for layer in small.children() if layer is not small.conv2}
    assert not weights & kept(small)
    assert weights <= kept(stands_for)


def some(kind: str, model: nn.Module) -> AdapterSet:
    """An adapter that changes something, the same for the same weights."""
    torch.manual_seed(2)
    adapters = create_adapters(kind, {}, find_targets({"unet": model}, "all"))
    initialize(adapters, {"unet": model})
    for parameter in adapters.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return adapters


def alone(adapters: AdapterSet) -> Mix:
    return Mix(((adapters, 1.0),))


def reads_rounded_weights(kind: str) -> bool:
    """Whether a kind starts without gradients of the base's own weights: the others are refused on such a base."""
    return KINDS[kind].required_statistics(KINDS[kind].settings()) not in ("gradient", "movement")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if reads_rounded_weights(kind)])
def test_every_kind_trains_on_top(kind: str, small: Net, stands_for: Net):
    found = []
    for model in (small, stands_for):
        adapters = some(kind, model)
        with mount({"unet": model}, alone(adapters)):
            y = model(X, timestep=500)
            y.square().mean().backward()
        found.append([y.detach(), *(p.grad for p in adapters.parameters())])
    assert any(gradient is not None and gradient.any() for gradient in found[0][1:])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_nothing_is_merged_into_them(small: Net):
    with pytest.raises(MountError, match="8 bits"), merge({"unet": small}, alone(some("lora", small))):
        pass
    assert all(isinstance(layer, Int8Layer) for layer in small.children())
