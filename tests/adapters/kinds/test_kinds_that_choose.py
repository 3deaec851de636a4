"""Kinds that choose what is trained during the training, each in a small loop that calls what the real one calls."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, BaseStatistics, Spec
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.formats.low_rank import finished
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import KINDS, create_adapters

SPEC = Spec("unet.layer", (64, 64))


def new(kind: str, **settings: Any) -> AdapterSet:
    torch.manual_seed(1)
    adapters = create_adapters(kind, settings, [SPEC])
    adapters[SPEC.name].initialize(BaseStatistics(torch.randn(SPEC.shape), gradient=torch.randn(SPEC.shape)))
    return adapters


def train(adapters: AdapterSet, target: Tensor, steps: int, lr: float = 1e-2, notes: Any = None) -> torch.optim.Adam:
    """Regression on random inputs, with what the training loop calls before and after each update."""
    kind, (adapter,) = KINDS[adapters.kind], adapters
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(adapters.parameters(), lr)
    for step in range(1, steps + 1):
        x = torch.randn(16, 64, generator=generator)
        optimizer.zero_grad()
        (x @ (adapter.delta(torch.zeros(SPEC.shape)) - target).T).square().mean().backward()
        update = OptimizerUpdate(step, steps, lr, optimizer.state)
        kind.before_update(adapters, update)
        optimizer.step()
        kind.after_update(adapters, update)
        if notes:
            notes(step)
    return optimizer


def planted(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    places = torch.randperm(prod(SPEC.shape), generator=generator)[:count]
    signs = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    return torch.zeros(prod(SPEC.shape)).index_put((places,), signs).reshape(SPEC.shape)


@pytest.mark.parametrize("kind", ["spiel", "dynamic-sparse"])
def test_planted_entries_are_found(kind: str):
    """128 of 4096; a fixed random choice would find 3 in a hundred of them."""
    adapters, target = new(kind, rank=1), planted(128)
    train(adapters, target, 400)
    adapter: Any = adapters[SPEC.name]
    index, values = adapter.entries()
    assert len(index.unique()) == len(values) == 128
    found = target.flatten()[index.long()] != 0
    assert found.float().mean() > 0.9


def test_an_exchange_leaves_the_others_as_they_are():
    adapters = new("spiel", rank=1)
    optimizer = train(adapters, planted(128), 19)
    adapter: Any = adapters[SPEC.name]
    state = optimizer.state[adapter.values]
    before = {name: value.clone() for name, value in state.items()}
    values, index = adapter.values.detach().clone(), adapter.index.clone()
    with torch.no_grad():
        adapter.exchange(torch.rand(4096), 0.25, OptimizerUpdate(20, 100, 1e-2, optimizer.state))
    stays = adapter.index == index
    assert stays.sum() == 96
    assert values.abs()[~stays].max() <= values.abs()[stays].min()
    assert torch.equal(adapter.values[stays], values[stays])
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[name][stays], before[name][stays])
    assert not adapter.values[~stays].any()
    assert not state["exp_avg"][~stays].any()
    assert_close(state["exp_avg_sq"][~stays], before["exp_avg_sq"][stays].mean().expand(32))


def test_dynamic_subset_tuning_keeps_so_many_after_every_update():
    adapters, counts = new("dynamic-sparse", rank=1), []
    adapter: Any = adapters[SPEC.name]
    train(adapters, planted(128), 20, notes=lambda _: counts.append(int(adapter.change.count_nonzero())))
    assert min(counts[:2]) > 1000   # a tenth of the updates cuts nothing
    assert set(counts[2:]) == {128}


def test_mosa_trains_one_part_at_a_time():
    adapters = new("mosa", rank=4, parts=3)
    adapter: Any = adapters[SPEC.name]
    before, changed = {}, []

    def note(step: int) -> None:
        now = {"up": adapter.up.detach().clone(), "down": adapter.down.detach().clone()}
        for name, part in (("up", adapter.up_part), ("down", adapter.down_part)):
            if before:
                moved = now[name] != before[name]
                assert not moved[part != step % 3].any()
                changed.append(moved.any().item())
        before.update(now)

    train(adapters, torch.randn(SPEC.shape), 9, notes=note)
    assert any(changed)
    assert {int(part) for part in adapter.up_part.unique()} == {0, 1, 2}


def test_mosa_leaves_the_moments_of_the_other_parts():
    adapters = new("mosa", rank=4, parts=2)
    adapter: Any = adapters[SPEC.name]
    optimizer = train(adapters, torch.randn(SPEC.shape), 1)   # part 1
    for moment in ("exp_avg", "exp_avg_sq"):
        value = optimizer.state[adapter.down][moment]
        assert not value[adapter.down_part == 0].any()
    assert not optimizer.state[adapter.up]["exp_avg"][adapter.up_part == 0].any()
    assert optimizer.state[adapter.up]["exp_avg"][adapter.up_part == 1].any()


def test_mask_tuning_switches_off_and_does_nothing_else():
    torch.manual_seed(0)
    weight, adapters = torch.randn(SPEC.shape), new("mask-tuning", rank=4)
    adapter: Any = adapters[SPEC.name]
    off = torch.rand(len(adapter.values)) < 0.3
    with torch.no_grad():
        adapter.values[off] = -0.01
    delta = adapter.delta(weight).flatten()
    expected = torch.zeros(4096)
    for place in adapter.index[off].tolist():
        expected[place] = -weight.flatten()[place]
    assert torch.equal(delta, expected)
    delta.backward(gradient := torch.randn(4096))
    places = adapter.index.long()
    assert_close(adapter.values.grad, gradient[places] * weight.flatten()[places])


def test_snell_is_the_kernel_of_every_pair():
    adapters = create_adapters("snell", {"rank": 6, "sparsity": 0.75}, [Spec("unet.a", (10, 8))])
    own: Any = adapters["unet.a"]
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(torch.randn_like(parameter))
    own.double().requires_grad_(False)

    def kernel(outs: Tensor, ins: Tensor, o: int, i: int) -> Tensor:
        return 0.1 * ((outs[0, o] - ins[0, i]).square().sum().sqrt() - (outs[1, o] - ins[1, i]).square().sum().sqrt())

    whole = torch.tensor([[kernel(own.outs, own.ins, o, i) - kernel(own.first_outs, own.first_ins, o, i)
                           for i in range(8)] for o in range(10)], dtype=torch.float64)
    delta = own.delta(torch.zeros(10, 8))
    assert delta.count_nonzero() == 20
    assert_close(delta, torch.where(whole.abs() >= whole.abs().flatten().topk(20).values[-1], whole, 0.0))


def test_shira_by_movement_trains_all_and_puts_it_back():
    """A layer whose loss pulls at 5 rows alone: those move."""
    torch.manual_seed(0)
    layer = nn.Linear(12, 20)
    before = layer.weight.detach().clone()
    adapters = create_adapters("shira", {"mask": "movement", "rank": 1}, [Spec("unet.layer", (20, 12))])
    x = torch.randn(8, 12)
    initialize(adapters, {"unet": nn.ModuleDict({"layer": layer})}, lambda: layer(x)[:, :5].square().sum())
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
    adapter: Any = adapters["unet.layer"]
    assert (adapter.index < 5 * 12).all()


@pytest.mark.parametrize("score", ["sensitivity", "growth", "removal", "contribution"])
def test_adalora_gives_its_budget_to_the_layer_that_learns(score: str):
    """Two layers of equal size; one has a target of rank 6, the other almost nothing to learn."""
    torch.manual_seed(0)
    specs = [Spec("unet.much", (24, 20)), Spec("unet.little", (24, 20))]
    goals = [torch.randn(24, 6) @ torch.randn(6, 20) / 3, 0.002 * torch.randn(24, 20)]
    adapters = create_adapters("adalora", {"rank": 4, "score": score}, specs)
    optimizer, kind = torch.optim.Adam(adapters.parameters(), 0.02), KINDS["adalora"]
    layers: list[Any] = list(adapters)
    active = []
    for step in range(1, 201):
        optimizer.zero_grad()
        torch.stack([(layer.delta(torch.zeros(24, 20)) - goal).square().mean()
                     for layer, goal in zip(layers, goals, strict=True)]).sum().backward()
        update = OptimizerUpdate(step, 200, 0.02, optimizer.state)
        kind.before_update(adapters, update)
        optimizer.step()
        kind.after_update(adapters, update)
        active.append(sum(int(layer.is_active.sum()) for layer in layers))
    assert active[0] == (2 if score == "growth" else 16)
    assert active[-1] == 8   # rank 4 on average
    assert active == sorted(active, reverse=score != "growth")
    much, little = (int(layer.gain.count_nonzero()) for layer in layers)
    assert much >= 6 and little <= 2
    saved = finished(adapters)
    assert saved.kind == "lora" and saved["unet.much"].get_parameter("down").shape == (much, 20)
    assert_close(saved["unet.much"].delta(torch.zeros(24, 20)), adapters["unet.much"].delta(torch.zeros(24, 20)))


def test_adalora_scores_are_those_of_the_gradients():
    adapters = create_adapters("adalora", {"rank": 2}, [Spec("unet.a", (8, 6))])
    own: Any = adapters["unet.a"]
    with torch.no_grad():
        own.gain.add_(torch.randn(4))
    own.delta(torch.zeros(8, 6)).backward(torch.randn(8, 6))
    own.requires_grad_(False)
    own.note_scores(own.gain.grad)
    for i in range(4):
        parts = [abs(own.gain[i] * own.gain.grad[i]).item(),
                 sum(abs(own.up[row, i] * own.up.grad[row, i]).item() for row in range(8)) / 8,
                 sum(abs(own.down[i, column] * own.down.grad[i, column]).item() for column in range(6)) / 6]
        assert own.level[i].item() == pytest.approx(0.15 * sum(parts), rel=1e-4)
        assert own.worth()[i].item() == pytest.approx(0.15 * sum(parts) * 0.15 * 0.85 * sum(parts) / 14, rel=1e-4)
