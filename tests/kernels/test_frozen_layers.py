"""Operations that keep less, against autograd's own: the same bits, and what they hold until the backward pass."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.kernels.frozen_layers import frozen_conv2d, gated_gelu

Way = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]   # stride, padding, dilation, groups


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gelu_written_out(projected: Tensor) -> Tensor:
    values, gates = projected.chunk(2, -1)
    return values * F.gelu(gates)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("way", [((1, 1), (1, 1), (1, 1), 1), ((2, 1), (0, 2), (1, 2), 1), ((1, 2), (1, 1), (2, 1), 2)])
def test_a_convolution_and_its_gradient(way: Way, biased: bool):
    x, weight = normal(2, 4, 9, 8).requires_grad_(), normal(6, 4 // way[3], 3, 3, seed=1)
    bias = normal(6, seed=2) if biased else None
    ours, theirs = frozen_conv2d(x, weight, bias, *way), F.conv2d(x, weight, bias, *way)
    assert torch.equal(ours, theirs)
    gradient = normal(*ours.shape, seed=3)
    assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs)))


def test_a_gate_and_its_gradient():
    x = normal(2, 5, 12).requires_grad_()
    ours, theirs = gated_gelu(x), gelu_written_out(x)
    assert torch.equal(ours, theirs)
    gradient = normal(*ours.shape, seed=3)
    assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs)))


def test_numerical_gradients():
    x, weight = normal(1, 2, 4, 3, dtype=torch.float64).requires_grad_(), normal(3, 2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: frozen_conv2d(y, weight, None, (1, 1), (1, 1), (1, 1), 1), x)
    assert torch.autograd.gradcheck(gated_gelu, normal(2, 6, dtype=torch.float64).requires_grad_())


def held(operation: Callable[[Tensor], Tensor]) -> int:
    """Bytes of what autograd keeps of an operation on 4 × 8 × 16 × 16 values, its input not counted."""
    source = normal(4, 8, 16, 16).requires_grad_()
    x = source * 1
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = operation(x)
    assert y.requires_grad
    return sum(size for place, size in kept.items() if place != x.untyped_storage().data_ptr())


def test_what_is_kept():
    weight = normal(8, 8, 3, 3, seed=1)
    whole = 4 * 8 * 16 * 16 * 4   # bytes of the input
    keeping = held(lambda x: F.conv2d(x * 1, weight, None, padding=1))
    assert keeping == whole + weight.nbytes
    assert held(lambda x: frozen_conv2d(x * 1, weight, None, (1, 1), (1, 1), (1, 1), 1)) == weight.nbytes
    assert held(lambda x: gelu_written_out(x)) == whole // 2   # what came through the gate
    assert held(gated_gelu) == 0
