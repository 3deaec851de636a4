"""The gate's definition against the paper's equation, written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from atelier.kernels.gated_sum import EPSILON, GateVectors, gated_sum, gates

WIDTH = 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vectors(**own: Tensor) -> GateVectors:
    found = GateVectors(*normal(len(GateVectors._fields), WIDTH, seed=7))
    return found._replace(**own)


def normalized(values: list[float], gain: Tensor, shift: Tensor) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + EPSILON)
    return [(v - mean) / spread * g + s for v, g, s in zip(values, gain.tolist(), shift.tolist(), strict=True)]


def by_hand(base: list[float], parts: list[list[float]], v: GateVectors, offset: float = 0.0) -> list[float]:
    """One token of the equation."""
    out = list(base)
    seen = normalized(base, v.base_gain, v.base_shift)
    for part in parts:
        own = normalized(part, v.part_gain, v.part_shift)
        for j in range(len(base)):
            logit = v.of_base[j] * seen[j] + v.of_part[j] * own[j] + v.of_both[j] * seen[j] * own[j] + v.bias[j]
            out[j] += v.out[j].item() * part[j] / (1 + math.exp(-logit.item() - offset))
    return out


@pytest.mark.parametrize("count", [0, 1, 3])
def test_it_is_the_equation_at_every_token(count: int):
    base, parts, v = normal(2, 3, WIDTH), normal(count, 2, 3, WIDTH, seed=1), vectors()
    found = gated_sum(base, parts, v, torch.tensor(0.3))
    for n in range(2):
        for t in range(3):
            expected = by_hand(base[n, t].tolist(), parts[:, n, t].tolist(), v, 0.3)
            assert_close(found[n, t], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_closed_gates_leave_the_base_and_half_open_ones_the_plain_sum():
    base, parts = normal(4, WIDTH), normal(3, 4, WIDTH, seed=1)
    zero = torch.zeros(WIDTH)
    quiet = vectors(of_base=zero, of_part=zero, of_both=zero, out=torch.full((WIDTH,), 2.0))
    assert_close(gated_sum(base, parts, quiet._replace(bias=zero)), base + parts.sum(0), rtol=0, atol=1e-6)
    assert torch.equal(gated_sum(base, parts, quiet._replace(bias=zero - torch.inf)), base)


def test_every_vector_and_every_activation_gets_its_gradient():
    base, parts = normal(2, WIDTH).double(), normal(2, 2, WIDTH, seed=1).double()
    leaves = [tensor.double().requires_grad_() for tensor in (base, parts, *vectors())]

    def loss(*values: Tensor) -> Tensor:
        return gated_sum(values[0].float(), values[1].float(), GateVectors(*values[2:])).square().sum()

    exact = torch.autograd.grad(loss(*leaves), leaves)
    for i, leaf in enumerate(leaves):
        step = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) * 1e-3
        moved = [[other + sign * step if j == i else other for j, other in enumerate(leaves)] for sign in (1, -1)]
        slope = (loss(*moved[0]) - loss(*moved[1])) / 2
        assert_close((exact[i] * step).sum(), slope.double(), rtol=0.02, atol=1e-4)


def test_half_precision_is_gated_in_full():
    base, parts = normal(4, WIDTH), normal(2, 4, WIDTH, seed=1)
    half = gated_sum(base.bfloat16(), parts.bfloat16(), vectors())
    assert half.dtype == torch.bfloat16
    assert gates(base.bfloat16(), parts.bfloat16(), vectors()).dtype == torch.float32
    exact = gated_sum(base.bfloat16().double(), parts.bfloat16().double(), vectors())
    assert_close(half.double(), exact, rtol=2**-8, atol=2**-8)   # only the result is rounded
