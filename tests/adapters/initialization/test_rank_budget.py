"""The allocator: within the budget, best value first, the same every time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.targets import find_targets
from atelier.adapters.initialization.initialize import collect_statistics
from atelier.adapters.initialization.rank_budget import (
    allocate_ranks,
    importance_from_gradients,
    importance_from_inputs,
    resize_ranks,
)
from atelier.adapters.kinds.catalog import create_adapters

sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


def made(shapes: list[tuple[int, int]]) -> list[Spec]:
    return [Spec(f"unet.{i}", shape) for i, shape in enumerate(shapes)]


def spent(specs: list[Spec], ranks: dict[str, int]) -> int:
    return sum(ranks[spec.name] * (spec.rows + spec.columns) for spec in specs)


@given(sizes, st.integers(0, 200), st.randoms(use_true_random=False))
def test_never_more_than_the_budget_and_no_rank_that_still_fits_is_left_out(shapes, budget, random):
    specs = made(shapes)
    worth = {spec.name: sorted((random.random() + 0.01 for _ in range(6)), reverse=True) for spec in specs}
    ranks = allocate_ranks(specs, worth, budget)
    left = budget - spent(specs, ranks)
    assert left >= 0
    assert all(ranks[s.name] == 6 or s.rows + s.columns > left for s in specs)
    assert allocate_ranks(specs, worth, budget) == ranks


@given(st.lists(st.integers(1, 8), min_size=2, max_size=3), st.integers(0, 60))
def test_equal_costs_give_the_best_there_is(tops, budget):
    """With equal costs greedy is optimal: no other division of the budget is worth more."""
    specs = made([(5, 5)] * len(tops))
    worth = {spec.name: [top / (i + 1) for i in range(4)] for spec, top in zip(specs, tops, strict=True)}

    def value(ranks: dict[str, int]) -> float:
        return sum(sum(worth[name][:rank]) for name, rank in ranks.items())

    every = (dict(zip(worth, ranks, strict=True)) for ranks in itertools.product(range(5), repeat=len(tops)))
    best = max(value(ranks) for ranks in every if spent(specs, ranks) <= budget)
    assert value(allocate_ranks(specs, worth, budget)) == pytest.approx(best)


def test_a_module_that_is_worth_more_gets_no_fewer():
    specs = made([(6, 6)] * 3)
    worth = {"unet.0": [1.0, 0.5, 0.2], "unet.1": [2.0, 1.0, 0.4], "unet.2": [0.1, 0.05, 0.02]}
    for budget in range(0, 120, 12):
        ranks = allocate_ranks(specs, worth, budget)
        assert ranks["unet.2"] <= ranks["unet.0"] <= ranks["unet.1"]


def test_modules_without_worth_get_nothing():
    assert allocate_ranks(made([(2, 2), (2, 2)]), {"unet.0": [1.0]}, 100) == {"unet.0": 1, "unet.1": 0}


@pytest.fixture
def model() -> nn.Module:
    return nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_k": nn.Linear(8, 8)})})


def test_ranks_from_the_inputs_of_a_model(model: nn.Module):
    """One module sees inputs along one line, the other in all directions: one rank is enough for the first."""
    q, k = (model.get_submodule(f"attn1.{name}") for name in ("to_q", "to_k"))
    line = torch.randn(50, 1) @ torch.randn(1, 8)

    def look() -> torch.Tensor:
        return q(line).sum() + k(torch.randn(50, 8)).sum()

    specs = find_targets({"unet": model}, "attention")
    modules = {spec.name: model.get_submodule(spec.name.removeprefix("unet.")) for spec in specs}
    ranks = allocate_ranks(specs, importance_from_inputs(collect_statistics(modules, "inputs", look)), budget=5 * 16)
    assert ranks == {"unet.attn1.to_q": 1, "unet.attn1.to_k": 4}
    adapters = create_adapters("lora", {"rank": 2}, specs, ranks)
    assert sum(p.numel() for p in adapters.parameters()) == 5 * 16


def test_ranks_from_gradients_follow_the_sensitivity():
    weights = {"unet.0": torch.ones(3, 3), "unet.1": torch.ones(3, 3)}
    gradients = {"unet.0": torch.full((3, 3), -4.0), "unet.1": torch.ones(3, 3)}
    worth = importance_from_gradients(gradients, weights, most=4)
    assert worth["unet.0"] == [36.0, 18.0, 12.0, 9.0]
    assert allocate_ranks(made([(3, 3), (3, 3)]), worth, budget=30) == {"unet.0": 4, "unet.1": 1}


@pytest.fixture
def trained() -> AdapterSet:
    adapters = create_adapters("lora", {"rank": 4, "alpha": 6}, made([(12, 10), (9, 9), (7, 20)]), {"unet.1": 0})
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    return adapters


def test_growing_changes_no_update_and_adds_trainable_ranks(trained: AdapterSet):
    specs = made([(12, 10), (9, 9), (7, 20)])
    grown = resize_ranks(trained, specs, {"unet.0": 6, "unet.1": 2, "unet.2": 4})
    assert [len(adapter.state_dict()["down"]) for adapter in grown] == [6, 2, 4]
    for adapter in grown:
        old = trained[adapter.spec.name].delta(torch.zeros(adapter.spec.shape)) if adapter.spec.name != "unet.1" else 0
        assert_close(adapter.delta(torch.zeros(adapter.spec.shape)) - old, torch.zeros(adapter.spec.shape),
                     rtol=0, atol=1e-5)
    assert grown["unet.0"].state_dict()["down"][4:].any(), "a new rank whose factors are both zero would never train"


def test_pruning_keeps_the_largest_directions(trained: AdapterSet):
    pruned = resize_ranks(trained, made([(12, 10), (9, 9), (7, 20)]), {"unet.0": 2, "unet.1": 0, "unet.2": 0})
    assert [spec.name for spec in pruned.specs] == ["unet.0"]
    whole = trained["unet.0"].delta(torch.zeros(12, 10)).detach().numpy()
    u, s, v = np.linalg.svd(whole)
    found = pruned["unet.0"].delta(torch.zeros(12, 10)).detach().numpy()
    np.testing.assert_allclose(found, (u[:, :2] * s[:2]) @ v[:2], atol=1e-4)


@pytest.mark.parametrize(("kind", "settings"), [("dora", {}), ("lora", {"start": "weight"})])
def test_what_cannot_change_its_ranks_says_so(kind: str, settings: dict[str, str]):
    specs = made([(4, 4)])
    with pytest.raises(ValueError, match="only a LoRA that starts at zero"):
        resize_ranks(create_adapters(kind, settings, specs), specs, {"unet.0": 2})
