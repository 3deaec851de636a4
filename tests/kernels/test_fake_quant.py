"""The quantizer against autograd through its ingredients, and against a definition in whole numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from atelier.kernels.fake_quant import decode, encode, fake_quant, top_code

BITS = 3


def parts(size: int = 9, *, single: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Values of which about a third lie outside the levels on either side; no two of them at a tie."""
    generator = torch.Generator().manual_seed(5)
    shape = () if single else (size, 1)
    values = torch.randn(size, 11, generator=generator, dtype=torch.float64)
    step = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5) * 0.15
    zero = torch.randint(2, 5, shape, generator=generator).double()
    return values.requires_grad_(), step.requires_grad_(), zero.requires_grad_()


def ingredients(values: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The same in autograd's own operations, rounding passed straight through."""
    ratio = values / step
    code = ratio + (ratio.round() - ratio).detach() + zero
    return (code.clamp(0, top_code(bits)) - zero) * step


@pytest.mark.parametrize("single", [False, True])
def test_value_and_every_gradient_are_those_of_the_ingredients(single: bool):
    arguments = parts(single=single)
    ours, theirs = fake_quant(*arguments, BITS), ingredients(*arguments, BITS)
    code = (arguments[0] / arguments[1]).round() + arguments[2]
    for region in (code < 0, code > top_code(BITS), (code > 0) & (code < top_code(BITS))):
        assert region.double().mean() > 0.05   # else a case of the formula is not looked at
    assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    weights = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(ours)
    gradients = [torch.autograd.grad((y * weights).sum(), arguments) for y in (ours, theirs)]
    for mine, reference in zip(*gradients, strict=True):
        assert_close(mine, reference, rtol=1e-9, atol=1e-9)


def test_the_closed_form_by_hand():
    """s = ½, z = 2, codes 0 to 3: below, inside and above the levels."""
    values = torch.tensor([-5.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    step, zero = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.5, 2.0))
    result = fake_quant(values, step, zero, 2)
    assert result.tolist() == [-1.0, 0.5, 0.5]
    weights = torch.tensor([1, 10, 100], dtype=torch.float64)
    of_values, of_step, of_zero = torch.autograd.grad(result, (values, step, zero), weights)
    assert of_values.tolist() == [0, 10, 0]
    assert float(of_step) == pytest.approx(-2 * 1 + (1 - 0.6) * 10 + (3 - 2) * 100, abs=1e-12)
    assert float(of_zero) == pytest.approx(-0.5 * 1 + -0.5 * 100, abs=1e-12)


def test_ties_round_to_even():
    ties = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    codes = encode(ties, torch.tensor(1.0), torch.tensor(4.0), 4)
    assert codes.tolist() == [2, 4, 4, 6, 6]


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("zero", [0, 1, 200])
def test_codes_by_plain_numbers_are_the_same(bits: int, zero: int):
    """At ties, at both ends, and far beyond them."""
    zero = min(zero, top_code(bits))
    ties = torch.arange(-300, 300) + 0.5
    far = torch.tensor([0.0, -0.0, 1e-30, 5e6, -5e6, 1e30, -1e30, torch.inf, -torch.inf])
    values = torch.cat([ties, far, torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 60])
    for step in (1.0, 0.3, 7e-4):
        single = torch.tensor(step), torch.tensor(float(zero))
        assert torch.equal(encode(values, step, zero, bits), encode(values, *single, bits))
        with torch.no_grad():
            assert torch.equal(fake_quant(values, step, zero, bits), fake_quant(values, *single, bits))
    strided = values[:5600].reshape(2, 7, 10, 40).to(memory_format=torch.channels_last)
    assert torch.equal(encode(strided, 0.3, zero, bits), encode(strided.contiguous(), 0.3, zero, bits))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_stand_for_the_rounded_values_and_rounding_twice_changes_nothing(bits: int):
    values, step, zero = (part.detach().float() for part in parts())
    zero = zero.clamp(max=top_code(bits))
    rounded, codes = fake_quant(values, step, zero, bits), encode(values, step, zero, bits)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) <= top_code(bits)
    assert torch.equal(decode(codes, step, zero), rounded)
    assert torch.equal(fake_quant(rounded, step, zero, bits), rounded)
    assert all(len(row.unique()) <= 2**bits for row in rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_in_float32(dtype: torch.dtype):
    values, step, zero = (part.detach().float() for part in parts())
    half = values.to(dtype).requires_grad_()
    result = fake_quant(half, step, zero, BITS)
    assert result.dtype == dtype
    assert torch.equal(result, fake_quant(half.float(), step, zero, BITS).to(dtype))
    result.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype


def test_more_bits_than_a_byte_are_refused():
    with pytest.raises(ValueError, match="bits is 9"):
        fake_quant(torch.zeros(2), torch.tensor(1.0), torch.tensor(0.0), 9)
