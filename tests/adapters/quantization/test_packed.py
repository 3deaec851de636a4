"""Compressed models in files: what is stored, what computes, and adapters on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import MountError, mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.weight_only_int8 import weight_shape
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.quantization import int8
from atelier.adapters.quantization import packed as packed_module
from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers
from atelier.adapters.quantization.bit_policy import LayerBits
from atelier.adapters.quantization.fake_quant_layers import add_activation_quantizers, add_fake_quant
from atelier.adapters.quantization.int8 import (
    ConvGeometry,
    PreparedWeight,
    is_exact,
    onednn_conv2d,
    onednn_linear,
    prepare_weight,
)
from atelier.adapters.quantization.packed import (
    PackedLayer,
    count_integer_layers,
    load_packed,
    prepare_layers,
    read_packed_contents,
    save_packed,
)
from atelier.kernels import int8_linear as definition
from atelier.kernels.fake_quant import encode, fake_quant
from atelier.kernels.int8_linear import PackedWeight, int8_linear, unpack

PLAN = {"conv": LayerBits(4, 8), "first": LayerBits(8, 8), "last": LayerBits(2, 8)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.last, self.updated_weight = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor, timestep: int) -> Tensor:
        seen = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.updated_weight(self.last(torch.relu(self.first(seen))))


@pytest.fixture(
    params=[PLAN, {name: LayerBits(bits.weight, 0) for name, bits in PLAN.items()}], ids=["inputs", "weights"]
)
def plan(request: pytest.FixtureRequest) -> dict[str, LayerBits]:
    return request.param


def student(plan: dict[str, LayerBits]) -> Net:
    """As after learning: pairs that are not zero, step sizes of their own at two timesteps."""
    torch.manual_seed(1)
    net = Net()
    for parameter in net.parameters():
        parameter.data = parameter.data.half().float()
    add_fake_quant(net, plan, rank=2, search=True)
    if any(bits.inputs for bits in plan.values()):
        steps, zeros = torch.tensor([0.02, 0.005, 0.006]), torch.tensor([128.0, 0, 2])
        levels = ActivationQuantizers((100, 900), steps, zeros, [8, 8, 8])
        add_activation_quantizers(net, levels)
        with torch.no_grad():
            levels.factors[1].mul_(1.3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.02)
    return net


@pytest.fixture
def packed(plan: dict[str, LayerBits], tmp_path: Path) -> tuple[Net, Net, Path]:
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
    assert {name for name in shapes if name.endswith(".weight")} == {"updated_weight.weight"}
    assert shapes["conv.codes"] == (3, 3, 3, 3)    # two of six channels in a byte
    assert shapes["first.codes"] == (8, 6)
    assert shapes["last.codes"] == (2, 8)          # four of five
    assert read_packed_contents(path).preset == "w4a8"


def test_layers_know_their_shape_without_making_a_weight(packed: tuple[Net, Net, Path]):
    net, again, _ = packed
    for name in PLAN:
        layer = again.get_submodule(name)
        assert isinstance(layer, PackedLayer)
        assert weight_shape(layer) == tuple(net.get_submodule(name).weight.shape)   # type: ignore[union-attr]
        assert_close(layer.weight, net.get_submodule(name).quantized_weight())   # type: ignore[operator]


def adapter(net: nn.Module, kind: str = "lora") -> AdapterSet:
    specs = [Spec(f"unet.{name}", weight_shape(net.get_submodule(name))) for name in PLAN]
    torch.manual_seed(5)
    adapters = create_adapters(kind, {"rank": 2}, specs)
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
        with mount({"unet": again}, Mix(((lora, strength),))):
            assert_close(again.first(seen) - bare, strength * seen @ down.T @ up.T, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.first(seen), bare)
    with pytest.raises(MountError, match="8 bits or fewer"), merge({"unet": again}, Mix(((lora, 1.0),))):
        pass


def test_a_file_of_another_model_is_refused(packed: tuple[Net, Net, Path]):
    with torch.device("meta"):
        other = Net()
        other.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"does not match its configuration at extra\.bias"):
        load_packed(other, packed[2], torch.float32)


def whole(bits: int, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Codes of a weight, zero points, step sizes, code − zero point, and a bias."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    out = shape[0]
    zeros = torch.full((out,), 128.0) if bits == 8 else torch.randint(0, 2**bits, (out,), generator=generator).float()
    numbers = (codes.short() - zeros.short().reshape(-1, *[1] * (len(shape) - 1))).to(torch.int8)
    return codes, zeros, torch.rand(out, generator=generator) * 0.1, numbers, torch.randn(out, generator=generator)


def ready_or_skip(numbers: Tensor, *given: Any) -> PreparedWeight:
    ready = prepare_weight(numbers, *given)
    if ready is None:
        assert not is_exact(int(numbers.abs().max()))
        pytest.skip("this processor's sums of such products overflow")
    return ready


@pytest.mark.parametrize("bits", [4, 2, 8])
@pytest.mark.parametrize("zero", [0, 99, 255])
def test_linear_layers_in_whole_numbers_are_the_definition(bits: int, zero: int):
    """oneDNN against the definition of kernels/int8_linear.py, wherever this processor is exact."""
    codes, zeros, steps, numbers, bias = whole(bits, 24, 40)
    ready = ready_or_skip(numbers, steps, bias)
    x = torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(1))
    found = onednn_linear(encode(x, 0.03, zero, 8), 0.03, zero, ready)
    expected = int8_linear(x, torch.tensor(0.03), torch.tensor(float(zero)), PackedWeight(codes, steps, zeros, 8), bias)
    # What the zero point adds to each sum is taken off again, so float32 is as exact as the larger of the two.
    cancelled = float((0.03 * zero * steps * numbers.float().sum(1)).abs().max())
    assert_close(found, expected, rtol=1e-5, atol=1e-5 + 4 * torch.finfo(torch.float32).eps * cancelled)


WAYS = {
    "3": (3, ConvGeometry(padding=(1, 1))), "1": (1, ConvGeometry()), "stride": (3, ConvGeometry((2, 2), (1, 1))),
    "wide": (3, ConvGeometry((1, 1), (2, 0), (2, 1))),
}   # fmt: skip


@pytest.mark.parametrize("bits", [4, 2, 8])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("zero", [0, 99, 255])
def test_convolutions_in_whole_numbers_are_sums_in_float64(bits: int, way: str, zero: int):
    """Borders too: what is outside of the picture is 0, whatever the zero point."""
    size, ways = WAYS[way]
    _, _, steps, numbers, bias = whole(bits, 24, 12, size, size)
    ready = ready_or_skip(numbers, steps, bias, ways)
    x = torch.randn(2, 12, 5, 6, generator=torch.Generator().manual_seed(1))
    seen = encode(x, 0.03, zero, 8)
    weight = numbers.double() * steps.double().reshape(-1, 1, 1, 1)
    expected = F.conv2d((seen.double() - zero) * 0.03, weight, bias.double(), *ways)
    for given in (seen, seen.contiguous(memory_format=torch.channels_last)):
        off = onednn_conv2d(given, 0.03, zero, ready).double() - expected
        assert float(off.abs().max() / expected.abs().max()) < 1e-5


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers for small layers too."""
    monkeypatch.setattr(packed_module, "MIN_INTEGER_PRODUCTS", 0)


@pytest.mark.usefixtures("always")
def test_a_machine_that_miscounts_falls_back(packed: tuple[Net, Net, Path], monkeypatch: pytest.MonkeyPatch):
    """The probe is believed, not the name of the processor."""
    _, again, _ = packed
    layers = read_packed_contents(packed[2]).layers.values()
    exact = sum(bits.inputs == 8 and is_exact(min(2**bits.weight - 1, 127)) for bits in layers)
    with torch.no_grad():
        expected = again(batch(), 100)
        prepare_layers(again)
        assert_close(again(batch(), 100), expected, rtol=1e-4, atol=1e-4)
        assert count_integer_layers(again) == (exact, 3)
        right = int8._sums
        monkeypatch.setattr(int8, "_sums", lambda *given: right(*given) + 1)
        is_exact.cache_clear()
        prepare_layers(again)
        assert_close(again(batch(), 100), expected, rtol=1e-5, atol=1e-5)
        assert count_integer_layers(again) == (0, 3)
    is_exact.cache_clear()


@pytest.mark.usefixtures("always")
def test_pictures_of_different_timesteps_and_gradients_need_floating_point(packed: tuple[Net, Net, Path]):
    _, again, _ = packed
    prepare_layers(again)
    mixed = torch.tensor([100, 900])
    with torch.no_grad():
        both = again(batch(), mixed)
        assert count_integer_layers(again)[0] == 0
        for i, timestep in enumerate((100, 900)):
            assert_close(both[i], again(batch(), timestep)[i], rtol=1e-4, atol=1e-4)
    again(batch().requires_grad_(), 100)
    assert count_integer_layers(again)[0] == 0


def test_small_layers_stay_in_floating_point(packed: tuple[Net, Net, Path]):
    """Asking for whole numbers takes longer than they save: see docs/notes/0010."""
    _, again, _ = packed
    prepare_layers(again)
    with torch.no_grad():
        again(batch(), 100)
    assert count_integer_layers(again) == (0, 3)


def test_saturating_sums_are_found_out(monkeypatch: pytest.MonkeyPatch):
    """What processors without VNNI do: pairs of products are added in 16 bits."""

    def saturating(codes: Tensor, _step: float, _zero: int, layer: PreparedWeight) -> Tensor:
        patches = F.unfold(codes.double(), 3)   # [B, in · 9, places]
        products = patches[:, None] * layer.weight.double().flatten(1)[None, :, :, None]
        pairs = products.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1)
        return pairs.sum(2).unflatten(-1, (2, 2)).float()

    monkeypatch.setattr(int8, "_sums", saturating)
    monkeypatch.setattr(torch.ops.onednn, "qconv_prepack", lambda numbers, *_: numbers)
    is_exact.cache_clear()
    assert [is_exact(largest) for largest in (3, 15, 64, 127)] == [True, True, True, False]
    is_exact.cache_clear()


@pytest.mark.parametrize("plan", [PLAN], ids=["inputs"], indirect=True)
def test_tensor_cores_have_the_linear_layers(packed: tuple[Net, Net, Path], monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for the twin: it gets what is stored, and the definition's answer comes out."""
    _, again, _ = packed
    asked: list[tuple[int, ...]] = []

    class StandIn:
        @staticmethod
        def int8_linear(rows: Tensor, step: Tensor, zero: Tensor, given: PackedWeight, bias: Tensor, _: None) -> Tensor:
            asked.append(tuple(given.codes.shape))
            numbers = unpack(given.codes, given.bits, len(given.steps)) - given.zeros.float()[:, None]
            return fake_quant(rows, step, zero, 8) @ (numbers * given.steps[:, None]).T + bias

    with torch.no_grad():
        expected = again(batch(), 500)
        for module in (packed_module, definition):
            monkeypatch.setattr(module, "twin", lambda name, _: StandIn if name == "int8_linear" else None)
        assert_close(again(batch(), 500), expected, rtol=1e-4, atol=1e-4)
    assert asked == [(8, 6), (2, 8)]
    assert count_integer_layers(again) == (2, 3)


def test_unpacked_codes_are_those_of_the_learned_weight(packed: tuple[Net, Net, Path]):
    net, again, _ = packed
    for name, bits in PLAN.items():
        learner, layer = net.get_submodule(name), again.get_submodule(name)
        codes = unpack(layer.codes, bits.weight, len(learner.weight))   # type: ignore[arg-type]
        assert int(codes.max()) < 2**bits.weight
        expected = encode(learner.updated_weight(), learner.steps, learner.zeros, bits.weight)   # type: ignore[operator, arg-type]
        assert torch.equal(codes, expected)
