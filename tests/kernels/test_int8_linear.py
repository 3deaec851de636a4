"""The linear layer in whole numbers, against exact arithmetic in Python, and the packing of its codes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from atelier.kernels.fake_quant import encode, fake_quant
from atelier.kernels.int8_linear import PackedWeight, int8_linear, pack, unpack

OUT, IN, RANK = 6, 5, 2


def layer(bits: int) -> tuple[PackedWeight, Tensor]:
    """A weight as it is stored, and its codes ``[out, in]``."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (OUT, IN), generator=generator, dtype=torch.uint8)
    zeros = torch.full((OUT,), 128.0) if bits == 8 else torch.arange(OUT) % 2**bits + 0.0
    return PackedWeight(pack(codes, bits), torch.rand(OUT, generator=generator) + 0.1, zeros, bits), codes


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor(0.02), torch.tensor(117.0)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_sum_of_products_in_fractions(bits: int):
    weight, codes = layer(bits)
    x, step, zero = inputs()
    bias = torch.linspace(-1, 1, OUT)
    result = int8_linear(x, step, zero, weight, bias)
    assert result.shape == (2, 3, OUT)
    given = encode(x.flatten(0, 1), step, zero, 8).tolist()
    for m, row in enumerate(given):
        for o, channel in enumerate(codes.tolist()):
            whole = sum((a - 117) * (b - int(weight.zeros[o])) for a, b in zip(row, channel, strict=True))
            scale = Fraction(float(step)) * Fraction(float(weight.steps[o]))
            exact = float(whole * scale + Fraction(float(bias[o])))
            assert float(result.flatten(0, 1)[m, o]) == pytest.approx(exact, rel=1e-5, abs=1e-6)


def test_a_low_rank_pair_reads_the_input_before_rounding():
    weight, _ = layer(4)
    x, _, zero = inputs()
    up, down = torch.randn(OUT, RANK), torch.randn(RANK, IN)
    coarse = torch.tensor(1.0)   # the rounded input is far from x
    both, bare = (int8_linear(x, coarse, zero, weight, None, pair) for pair in ((up, down), None))
    assert_close(both - bare, torch.einsum("...i,ri,or->...o", x, down, up), rtol=1e-4, atol=1e-5)


def test_it_is_the_rounded_layer_of_training():
    weight, codes = layer(4)
    x, step, zero = inputs()
    matrix = (codes - weight.zeros[:, None]) * weight.steps[:, None]
    assert_close(int8_linear(x, step, zero, weight), fake_quant(x, step, zero, 8) @ matrix.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1])
@pytest.mark.parametrize("shape", [(8, 3), (7, 3), (16, 2, 3, 3), (1, 1)])
def test_packing_round_trip(bits: int, shape: tuple[int, ...]):
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    packed = pack(codes, bits)
    parts = {6: (4, 2), 5: (4, 1), 3: (2, 1)}.get(bits, (bits,))
    assert packed.shape == (sum(-(-shape[0] * part // 8) for part in parts), *shape[1:])
    assert torch.equal(unpack(packed, bits, shape[0]), codes)


def test_the_first_channel_lies_in_the_lowest_bits():
    codes = torch.tensor([[3], [0], [1], [2]], dtype=torch.uint8)
    assert pack(codes, 2).tolist() == [[3 + 1 * 16 + 2 * 64]]
    assert pack(codes, 4).tolist() == [[3], [1 + 2 * 16]]


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="16 does not fit into 4 bits"):
        pack(torch.tensor([[16]], dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match=r"7 bits.*1, 2, 3, 4, 5, 6, 8"):
        pack(torch.tensor([[1]], dtype=torch.uint8), 7)
