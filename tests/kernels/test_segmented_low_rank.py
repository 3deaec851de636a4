"""Updates of each picture's own, against weights merged picture by picture in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from atelier.kernels.segmented_low_rank import Pair, add_segmented_conv2d, add_segmented_linear, stack_pairs

RANKS = (4, 8, 0, 2, 16, 3)   # 0: a picture without an update
LAYERS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "in strides": {"kernel_size": 3, "padding": 1, "stride": 2},
    "1x1": {"kernel_size": 1},
    "dilated, not square": {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1)},
}


def pairs(out: int, columns: int) -> list[Pair | None]:
    torch.manual_seed(4)
    return [(torch.randn(out, r), torch.randn(r, columns)) if r else None for r in RANKS]


def stacked(given: list[Pair | None]) -> Pair:
    return stack_pairs(given, next(pair for pair in given if pair))


def merged(pair: Pair | None, weight: Tensor) -> Tensor:
    change = 0 if pair is None else (pair[0].double() @ pair[1].double()).reshape(weight.shape)
    return weight.double() + change


@pytest.mark.parametrize("shape", [(7, 5), (5,)])
@pytest.mark.parametrize("times", [1, 2])
def test_a_linear_layer_is_the_one_with_merged_weights(shape: tuple[int, ...], times: int):
    given, layer = pairs(9, 5), nn.Linear(5, 9)
    x = torch.randn(times * len(RANKS), *shape)
    found = add_segmented_linear(layer(x), x, *stacked(given))
    for b in range(len(x)):
        expected = F.linear(x[b].double(), merged(given[b % len(RANKS)], layer.weight), layer.bias.double())
        assert_close(found[b].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", LAYERS)
def test_a_convolution_is_the_one_with_merged_weights(way: str):
    layer = nn.Conv2d(4, 6, **LAYERS[way])
    given, x = pairs(6, layer.weight[0].numel()), torch.randn(2 * len(RANKS), 4, 9, 8)
    found = add_segmented_conv2d(layer(x), x, *stacked(given), layer)
    for b in range(len(x)):
        weight = merged(given[b % len(RANKS)], layer.weight)
        placed = layer.stride, layer.padding, layer.dilation
        expected = F.conv2d(x[b : b + 1].double(), weight, layer.bias.double(), *placed)
        assert_close(found[b : b + 1].double(), expected, rtol=1e-5, atol=1e-4)


def test_memory_in_the_other_order_is_no_obstacle():
    layer = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
    given = pairs(6, 36)
    x = torch.randn(6, 4, 5, 5)
    turned = x.contiguous(memory_format=torch.channels_last)
    plain = add_segmented_conv2d(layer(x), x, *stacked(given), layer)
    assert_close(add_segmented_conv2d(layer(turned), turned, *stacked(given), layer), plain, rtol=1e-5, atol=1e-5)
