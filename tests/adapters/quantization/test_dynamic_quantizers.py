"""Ranges of each input's own: rounded row by row, no picture sees another, and convolutions sum whole numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.quantization.bit_policy import LayerBits
from atelier.adapters.quantization.dynamic_quantizers import DynamicQuantizers, round_rows
from atelier.adapters.quantization.fake_quant_layers import add_activation_quantizers, add_fake_quant
from atelier.adapters.quantization.packed import load_packed, read_packed_contents, save_packed

CONVOLUTIONS = {
    "of one tap": {"kernel_size": 1},
    "padded": {"kernel_size": 3, "padding": 1},
    "in strides": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated, not square": {"kernel_size": (3, 2), "padding": (2, 1), "dilation": 2},
}


def pictures(count: int = 3, side: int = 7) -> Tensor:
    """Of very different sizes, so that a shared range would be wrong for most of them."""
    x = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(3))
    return x * torch.tensor([1.0, 30.0, 0.01])[:count, None, None, None]


def by_hand(row: np.ndarray, bits: int, clip: float = 1.0) -> tuple[np.ndarray, float, int]:
    """Codes, step size and zero point of one row."""
    low, high, top = min(row.min(), 0), max(row.max(), 0), 2**bits - 1
    whole = (high - low) / top
    zero = round(float(-low / whole))
    return np.clip(np.rint(row / (whole * clip)) + zero, 0, top), whole * clip, zero


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("clip", [1.0, 0.8])
def test_each_row_is_rounded_to_levels_of_its_own(bits: int, clip: float):
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).double() * torch.logspace(-2, 2, 5)[:, None]
    found = round_rows(x.float(), clip, bits)
    for row, rounded in zip(x.float().reshape(-1, 16).numpy(), found.reshape(-1, 16), strict=True):
        codes, step, zero = by_hand(row.astype(np.float64), bits, clip)
        assert_close(rounded.double(), torch.from_numpy((codes - zero) * step), rtol=1e-5, atol=1e-6 * step)


@pytest.mark.parametrize("way", CONVOLUTIONS)
def test_a_convolution_is_a_sum_of_whole_numbers_under_its_kernel(way: str):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 5, **CONVOLUTIONS[way]), pictures()
    quantizers = DynamicQuantizers([4])
    found = quantizers.apply_layer(layer, 0, x, layer.weight).detach()
    assert found.shape == layer(x).shape
    height, width = layer.kernel_size
    padded = nn.functional.pad(x, (layer.padding[1],) * 2 + (layer.padding[0],) * 2).numpy().astype(np.float64)
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    for picture, row, column in [(0, 0, 0), (1, 1, 2), (2, found.shape[2] - 1, found.shape[3] - 1)]:
        top, left = row * layer.stride[0], column * layer.stride[1]
        patch = padded[picture, :, top : top + (height - 1) * layer.dilation[0] + 1 : layer.dilation[0],
                       left : left + (width - 1) * layer.dilation[1] + 1 : layer.dilation[1]]   # fmt: skip
        codes, step, zero = by_hand(patch, 4)
        expected = step * ((codes - zero) * weight).sum((1, 2, 3)) + bias
        assert_close(found[picture, :, row, column].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(4, 5, 1)])
def test_no_picture_sees_its_neighbours(layer: nn.Conv2d):
    quantizers, x = DynamicQuantizers([4]), pictures()
    together = quantizers.apply_layer(layer, 0, x, layer.weight)
    for i in range(len(x)):
        assert_close(quantizers.apply_layer(layer, 0, x[i : i + 1], layer.weight)[0], together[i], rtol=1e-5, atol=1e-5)
    assert torch.equal(round_rows(x[:1], 1.0, 4), round_rows(x, 1.0, 4)[:1])
    assert torch.equal(round_rows(8 * x, 1.0, 4), 8 * round_rows(x, 1.0, 4))   # scales along, exactly


def test_zeros_stay_zeros_and_gradients_reach_inputs_and_factor():
    assert torch.equal(round_rows(torch.zeros(2, 6), 1.0, 4), torch.zeros(2, 6))
    x, clip = torch.randn(4, 9, generator=torch.Generator().manual_seed(2)).requires_grad_(), torch.tensor(0.7)
    clip.requires_grad_()
    round_rows(x, clip, 4).square().sum().backward()
    assert x.grad is not None and clip.grad is not None
    assert (x.grad == 0).any() and (x.grad != 0).any()   # what was cut off, and the rest
    assert clip.grad != 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x: Tensor, timestep: int) -> Tensor:
        return self.last(torch.relu(self.conv(x)).flatten(2).transpose(1, 2))


def student() -> Net:
    torch.manual_seed(1)
    net = Net()
    for parameter in net.parameters():
        parameter.data = parameter.data.half().float()
    add_fake_quant(net, {"conv": LayerBits(4, 4), "last": LayerBits(6, 8)}, rank=2, search=True)
    add_activation_quantizers(net, DynamicQuantizers([4, 8], torch.tensor([0.9, 1.0])))
    return net


def test_the_file_gives_the_model_back(tmp_path: Path):
    net, path = student(), tmp_path / "packed.safetensors"
    save_packed(net, path, "w4a4", {})
    with torch.device("meta"):
        again = Net()
    load_packed(again, path, torch.float32)
    assert read_packed_contents(path).dynamic
    assert_close(again(pictures(), 5), net(pictures(), 900).detach(), rtol=1e-5, atol=1e-5)
    assert_close(load_file(path)["input_levels.clips"], torch.tensor([0.9, 1.0]))


def test_a_file_from_before_there_were_dynamic_ranges_still_opens(tmp_path: Path):
    path = tmp_path / "packed.safetensors"
    save_packed(student(), path, "w4a4", {})
    with safe_open(path, "pt") as file:
        header = {key: json.loads(value) for key, value in file.metadata().items()}
    for values in header.values():
        values.pop("dynamic")
    save_file(load_file(path), path, {key: json.dumps(value) for key, value in header.items()})
    assert read_packed_contents(path).dynamic is False
