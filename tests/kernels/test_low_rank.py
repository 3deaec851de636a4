"""The low-rank layers as one operation against plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from atelier.kernels.low_rank import low_rank_linear, low_rank_linears, low_rank_pointwise

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


def same(ours: Tensor, theirs: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """The same values, and the same gradients for an uneven sum of them."""
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs)]
    assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 2)])
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradients_are_those_of_the_woven_weight(shape: tuple[int, ...], biased: bool):
    x, weight, bias, up, down = parts(torch.float64, *shape)
    ours = low_rank_linear(x, weight, bias if biased else None, up, down)
    theirs = woven(x, weight, bias if biased else None, up, down)
    same(ours, theirs, (x, up, down))


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


@pytest.mark.parametrize("learns", [True, False])
def test_layers_that_share_their_input_are_those_layers(learns: bool):
    x, *_ = parts()
    x.requires_grad_(learns)
    sizes = [(5, 3), (4, 1), (6, 2)]   # out, rank

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)

    weights = [normal(out, IN) for out, _ in sizes]
    ups, downs = ([normal(*size).requires_grad_() for size in shapes]
                  for shapes in (sizes, [(rank, IN) for _, rank in sizes]))   # fmt: skip
    ours = low_rank_linears(x, weights, ups, downs)
    theirs = [woven(x, weight, None, up, down) for weight, up, down in zip(weights, ups, downs, strict=True)]
    assert_close(list(ours), theirs, rtol=1e-12, atol=1e-12)
    leaves = [*ups, *downs, *([x] if learns else [])]
    # The middle one counts for nothing: its gradient never comes.
    one, other = (torch.autograd.grad(y[0].square().sum() + y[2].sum(), leaves, allow_unused=True)
                  for y in (ours, theirs))   # fmt: skip
    for mine, true in zip(one, other, strict=True):
        assert_close(mine, torch.zeros_like(mine) if true is None else true, rtol=1e-12, atol=1e-12)


def picture_parts(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, weight, bias, up, down = parts(dtype)
    x = torch.randn(2, IN, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)
    return x.requires_grad_(), weight[:, :, None, None], bias, up, down


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    """The definition: a convolution with the update added to the weight."""
    return F.conv2d(x, weight + (up @ down)[:, :, None, None], bias)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("biased", [True, False])
def test_a_pointwise_convolution_has_the_woven_weight(biased: bool, layout: torch.memory_format):
    x, weight, bias, up, down = picture_parts()
    x = x.detach().to(memory_format=layout).requires_grad_()
    ours, theirs = (layer(x, weight, bias if biased else None, up, down) for layer in (low_rank_pointwise, convolved))
    same(ours, theirs, (x, up, down))


def test_a_pointwise_input_without_gradient_gets_none():
    x, weight, bias, up, down = picture_parts()
    low_rank_pointwise(x.detach(), weight, bias, up, down).sum().backward()
    assert x.grad is None
    assert up.grad is not None
    assert down.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_pointwise_convolution_stays_in_its_precision(dtype: torch.dtype):
    x, weight, bias, up, down = picture_parts(dtype)
    ours = low_rank_pointwise(x, weight, bias, up, down)
    assert ours.dtype == dtype
    truth = convolved(*(part.detach().double() for part in (x, weight, bias, up, down)))
    assert (ours.detach().double() - truth).norm() / truth.norm() < 4 * torch.finfo(dtype).eps
