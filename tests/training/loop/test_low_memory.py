"""GaLore and LISA against torch's Adam, and what they may keep and change."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.galore import Galore
from atelier.training.loop.lisa import Lisa
from atelier.training.loop.optimizers import make_optimizer


def gradients(steps: int, *shapes: tuple[int, ...]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def play(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], given: list[list[Tensor]]) -> None:
    for row in given:
        for parameter, gradient in zip(own, row, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


SHAPES = ((6, 9), (9, 6), (5,))


@pytest.mark.parametrize("make", [
    lambda own: Galore(own, 0.1, rank=6, weight_decay=0.01),
    lambda own: Lisa(own, 0.1, share=1.0, weight_decay=0.01),
])  # fmt: skip
def test_with_everything_kept_it_is_adamw(make):
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    given = gradients(7, *SHAPES)
    play(make(ours), ours, given)
    play(torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.01), theirs, given)
    assert_close(list(ours), list(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_galore_is_adam_on_the_gradient_along_its_main_directions(shape: tuple[int, int]):
    [own] = parameters(shape)
    start, given = own.detach().clone(), gradients(3, shape)
    play(Galore([own], 0.1, rank=4, period=9), [own], given)
    u, _, v = torch.linalg.svd(given[0][0], full_matrices=False)
    basis = u[:, :4] if shape[0] < shape[1] else v[:4]   # signs don't matter: Adam is odd
    seen = [[basis.T @ row[0] if shape[0] < shape[1] else row[0] @ basis.T] for row in given]
    small = [nn.Parameter(torch.zeros_like(seen[0][0]))]
    play(torch.optim.Adam(small, lr=0.1), small, seen)
    moved = basis @ small[0] if shape[0] < shape[1] else small[0] @ basis
    assert_close(own - start, moved, rtol=1e-3, atol=1e-4)


def test_galore_keeps_few_values_and_its_rank_grows_with_each_search():
    [own] = parameters((40, 60))
    start = own.detach().clone()
    optimizer = Galore([own], 0.1, rank=4, period=2)
    for i, row in enumerate(gradients(6, (40, 60))):
        play(optimizer, [own], [row])
        assert torch.linalg.matrix_rank(own - start, rtol=1e-4) == 4 * (i // 2 + 1)
    held = sum(value.numel() for value in optimizer.state[own].values() if isinstance(value, Tensor))
    assert held == 4 * 40 + 2 * 4 * 60


def test_eight_bits_hold_a_quarter_and_follow_the_same_way():
    (coarse,), (fine,) = parameters((40, 60)), parameters((40, 60))
    start, given = fine.detach().clone(), gradients(12, (40, 60))
    optimizer = Galore([coarse], 0.1, rank=4, period=20, eight_bits=True)
    play(optimizer, [coarse], given)
    play(Galore([fine], 0.1, rank=4, period=20), [fine], given)
    assert (coarse - fine).norm() < 0.1 * (fine - start).norm()
    state = optimizer.state[coarse]
    assert (state["mean"].dtype, state["square"].dtype) == (torch.int8, torch.uint8)
    assert state["mean_scale"].shape == (4, 1)


@pytest.mark.parametrize("make", [
    lambda own: Galore(own, 0.1, rank=4, period=3), lambda own: Galore(own, 0.1, rank=4, period=3, eight_bits=True),
    lambda own: Lisa(own, 0.1, share=0.4, period=2),
])  # fmt: skip
def test_a_state_that_is_loaded_goes_on_in_every_bit(make):
    shapes = ((8, 9), (9, 8), (7, 7))
    whole, given = parameters(*shapes), gradients(7, *shapes)
    play(make(whole), whole, given)
    cut = parameters(*shapes)
    first = make(cut)
    play(first, cut, given[:4])
    second = make(cut)
    second.load_state_dict(first.state_dict())
    play(second, cut, given[4:])
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))


def test_lisa_changes_what_is_drawn_and_keeps_states_for_that_alone():
    own = parameters(*[(3, 3)] * 8)
    optimizer = Lisa(own, 0.1, share=0.25, period=2)
    seen, before = set(), [parameter.detach().clone() for parameter in own]
    drawn = []
    for row in gradients(40, *[(3, 3)] * 8):
        play(optimizer, own, [row])
        moved = frozenset(i for i, value in enumerate(before) if not torch.equal(value, own[i]))
        assert moved == {i for i, parameter in enumerate(own) if parameter in optimizer.state} and len(moved) == 2
        seen |= moved
        drawn.append(moved)
        before = [parameter.detach().clone() for parameter in own]
    assert seen == set(range(8))
    assert all(one == other for one, other in list(pairwise(drawn))[::2])


@pytest.mark.parametrize("optimizer", ["galore", "galore-8bit", "lisa"])
def test_the_kind_full_is_trained_by_each(optimizer: str):
    adapters = create_adapters("full", {}, [Spec(f"unet.{i}", (40, 20)) for i in range(4)])
    config = TrainConfig(name="x", pictures="x", subject="x", kind="full", optimizer=optimizer, lr=0.1)
    own = make_optimizer(config, adapters)
    for _ in range(25):
        own.zero_grad()
        torch.stack([(one.delta(torch.zeros(40, 20)) - 1).square().sum() for one in adapters]).sum().backward()
        own.step()
    assert sum(one.delta(torch.zeros(40, 20)).mean().item() for one in adapters) / 4 > 0.3
