"""The fused low-rank linear layer against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from atelier.kernels.low_rank import low_rank_linear

OUT, IN, RANK = 5, 7, 3


def parts(dtype: torch.dtype = torch.float64, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    x, up, down = normal(*(shape or (2, 4)), IN), normal(OUT, RANK), normal(RANK, IN)
    return x.requires_grad_(), normal(OUT, IN), normal(OUT), up.requires_grad_(), down.requires_grad_()


def woven(x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    """The definition: the update added to the weight."""
    product = torch.einsum("...i,oi->...o", x, weight + torch.einsum("or,ri->oi", up, down))
    return product if bias is None else product + bias


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 2)])
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradients_are_those_of_the_woven_weight(shape: tuple[int, ...], biased: bool):
    x, weight, bias, up, down = parts(torch.float64, *shape)
    ours = low_rank_linear(x, weight, bias if biased else None, up, down)
    theirs = woven(x, weight, bias if biased else None, up, down)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(ours)
    gradients = [torch.autograd.grad((y * weights).sum(), (x, up, down)) for y in (ours, theirs)]
    assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_numerical_gradients():
    x, weight, bias, up, down = parts()
    assert torch.autograd.gradcheck(low_rank_linear, (x, weight, bias, up, down))


def test_an_input_without_gradient_gets_none():
    x, weight, bias, up, down = parts()
    low_rank_linear(x.detach(), weight, bias, up, down).sum().backward()
    assert x.grad is None
    assert up.grad is not None
    assert down.grad is not None


def test_a_batch_that_is_no_contiguous_block():
    x, weight, bias, up, down = parts(torch.float64, 4, 2)
    turned = x.transpose(0, 1)
    assert_close(low_rank_linear(turned, weight, bias, up, down), woven(turned, weight, bias, up, down))
    low_rank_linear(turned, weight, bias, up, down).transpose(0, 1).sum().backward()   # nor is its gradient
    assert x.grad is not None
    assert_close(x.grad, (weight + up @ down).sum(0).expand_as(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_stay_in_their_own(dtype: torch.dtype):
    x, weight, bias, up, down = parts(dtype)
    ours = low_rank_linear(x, weight, bias, up, down)
    assert ours.dtype == dtype
    truth = woven(*(part.detach().double() for part in (x, weight, bias, up, down)))
    assert (ours.detach().double() - truth).norm() / truth.norm() < 4 * torch.finfo(dtype).eps
