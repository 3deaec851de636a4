"""Compressed models in files: what is stored, what computes, and adapters on top."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters import int8
from atelier.adapters.base import AdapterSet, Spec
from atelier.adapters.catalog import create
from atelier.adapters.frozen8 import weight_shape
from atelier.adapters.input_levels import InputLevels
from atelier.adapters.int8 import exact_to, linear, prepare
from atelier.adapters.merge import merged
from atelier.adapters.mix import Mix
from atelier.adapters.mount import MountError, mounted
from atelier.adapters.packed import Packed, get_ready, in_whole_numbers, load_packed, read_contents, save_packed
from atelier.adapters.quant import make_rounding, round_inputs
from atelier.adapters.quant_policy import Bits
from atelier.kernels.fake_quant import encode
from atelier.kernels.int8_linear import PackedWeight, int8_linear, unpack

PLAN = {"conv": Bits(4, 8), "first": Bits(8, 8), "last": Bits(2, 8)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.last, self.whole = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor, timestep: int) -> Tensor:
        seen = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.whole(self.last(torch.relu(self.first(seen))))


@pytest.fixture(params=[PLAN, {name: Bits(bits.weight, 0) for name, bits in PLAN.items()}], ids=["inputs", "weights"])
def plan(request: pytest.FixtureRequest) -> dict[str, Bits]:
    return request.param


def student(plan: dict[str, Bits]) -> Net:
    """As after learning: pairs that are not zero, step sizes of their own at two timesteps."""
    torch.manual_seed(1)
    net = Net()
    for parameter in net.parameters():
        parameter.data = parameter.data.half().float()
    make_rounding(net, plan, rank=2, search=True)
    if any(bits.inputs for bits in plan.values()):
        levels = InputLevels((100, 900), torch.tensor([0.02, 0.005, 0.006]), torch.tensor([128.0, 0, 2]), [8, 8, 8])
        round_inputs(net, levels)
        with torch.no_grad():
            levels.factors[1].mul_(1.3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.02)
    return net


@pytest.fixture
def packed(plan: dict[str, Bits], tmp_path: Path) -> tuple[Net, Net, Path]:
    """The model that learned, the one from its file, and the file."""
    net = student(plan)
    save_packed(net, tmp_path / "packed.safetensors", "w4a8", {})
    with torch.device("meta"):
        again = Net()
    load_packed(again, tmp_path / "packed.safetensors", torch.float32)
    return net, again, tmp_path / "packed.safetensors"


def batch() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("timestep", [100, 500, 900])
def test_the_file_gives_the_model_back(packed: tuple[Net, Net, Path], timestep: int):
    net, again, _ = packed
    with torch.no_grad():
        assert_close(again(batch(), timestep), net(batch(), timestep), rtol=1e-5, atol=1e-5)


def test_nothing_of_the_pairs_and_no_float_weight_of_a_coded_layer_is_in_it(packed: tuple[Net, Net, Path]):
    *_, path = packed
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}   # noqa: SIM118
    assert not any(name.endswith((".up", ".down")) for name in shapes)
    assert {name for name in shapes if name.endswith(".weight")} == {"whole.weight"}
    assert shapes["conv.codes"] == (3, 3, 3, 3)    # two of six channels in a byte
    assert shapes["first.codes"] == (8, 6)
    assert shapes["last.codes"] == (2, 8)          # four of five
    assert read_contents(path).preset == "w4a8"


def test_layers_know_their_shape_without_making_a_weight(packed: tuple[Net, Net, Path]):
    net, again, _ = packed
    for name in PLAN:
        layer = again.get_submodule(name)
        assert isinstance(layer, Packed)
        assert weight_shape(layer) == tuple(net.get_submodule(name).weight.shape)   # type: ignore[union-attr]
        assert_close(layer.weight, net.get_submodule(name).rounded())   # type: ignore[operator]


def adapter(net: nn.Module, kind: str = "lora") -> AdapterSet:
    specs = [Spec(f"unet.{name}", weight_shape(net.get_submodule(name))) for name in PLAN]
    torch.manual_seed(5)
    adapters = create(kind, {"rank": 2}, specs)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.3)
    return adapters


def test_adapters_on_top_keep_their_sliders(packed: tuple[Net, Net, Path]):
    """The side path is in full precision: it adds what the adapter's own matrices make of the unrounded input."""
    _, again, _ = packed
    lora, seen = adapter(again), torch.rand(4, 6, generator=torch.Generator().manual_seed(6))
    bare = again.first(seen)
    factors = lora["unet.first"].factors()
    assert factors is not None
    up, down = factors
    for strength in (0.5, -1.0):
        with mounted({"unet": again}, Mix(((lora, strength),))):
            assert_close(again.first(seen) - bare, strength * seen @ down.T @ up.T, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.first(seen), bare)
    with pytest.raises(MountError, match="8 bits and less"), merged({"unet": again}, Mix(((lora, 1.0),))):
        pass


def test_a_file_of_another_model_is_refused(packed: tuple[Net, Net, Path]):
    with torch.device("meta"):
        other = Net()
        other.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"does not fit its configuration at extra\.bias"):
        load_packed(other, packed[2], torch.float32)


@pytest.mark.parametrize("bits", [4, 2, 8])
def test_whole_numbers_are_the_definition(bits: int):
    """oneDNN against the definition of kernels/int8_linear.py, wherever this processor is exact."""
    generator = torch.Generator().manual_seed(bits)
    out, inner = 24, 40
    codes = torch.randint(0, 2**bits, (out, inner), generator=generator, dtype=torch.uint8)
    zeros = torch.full((out,), 128.0) if bits == 8 else torch.randint(0, 2**bits, (out,), generator=generator).float()
    weight = PackedWeight(codes, torch.rand(out, generator=generator) * 0.1, zeros, 8)
    numbers = (codes.short() - zeros.short()[:, None]).to(torch.int8)
    bias = torch.randn(out, generator=generator)
    ready = prepare(numbers, weight.steps, bias)
    if ready is None:
        assert not exact_to(int(numbers.abs().max()))
        pytest.skip("this processor's sums of such products overflow")
    x = torch.randn(7, inner, generator=generator)
    step, zero = torch.tensor(0.03), torch.tensor(99.0)
    found = linear(encode(x, step, zero, 8), float(step), int(zero), ready)
    assert_close(found, int8_linear(x, step, zero, weight, bias), rtol=1e-5, atol=1e-5)


def test_a_machine_that_miscounts_falls_back(packed: tuple[Net, Net, Path], monkeypatch: pytest.MonkeyPatch):
    """The probe is believed, not the name of the processor."""
    _, again, _ = packed
    with torch.no_grad():
        expected = again(batch(), 100)
        get_ready(again)
        counted, of = in_whole_numbers(again)
        assert of == 3
        assert_close(again(batch(), 100), expected, rtol=1e-4, atol=1e-4)
        right = int8.linear
        monkeypatch.setattr(int8, "linear", lambda *given: right(*given) + 1)
        exact_to.cache_clear()
        get_ready(again)
        assert in_whole_numbers(again) == (0, 3)
        assert torch.equal(again(batch(), 100), expected)
    exact_to.cache_clear()
    assert counted <= 2   # the convolution has no such way


def test_saturating_sums_are_found_out(monkeypatch: pytest.MonkeyPatch):
    """What processors without VNNI do: pairs of products are added in 16 bits."""

    def saturating(codes: Tensor, step: float, zero: int, layer: int8.Prepared) -> Tensor:
        pairs = (codes.int()[:, None] * layer.weight.int()).unflatten(-1, (-1, 2)).sum(-1)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(-1).float()

    monkeypatch.setattr(int8, "linear", saturating)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", lambda numbers, _: numbers)
    exact_to.cache_clear()
    assert [exact_to(largest) for largest in (3, 15, 64, 127)] == [True, True, True, False]
    exact_to.cache_clear()


def test_unpacked_codes_are_those_of_the_learned_weight(packed: tuple[Net, Net, Path]):
    net, again, _ = packed
    for name, bits in PLAN.items():
        learner, layer = net.get_submodule(name), again.get_submodule(name)
        codes = unpack(layer.codes, bits.weight, len(learner.weight))   # type: ignore[arg-type]
        assert int(codes.max()) < 2**bits.weight
        expected = encode(learner.whole(), learner.steps, learner.zeros, bits.weight)   # type: ignore[operator, arg-type]
        assert torch.equal(codes, expected)
