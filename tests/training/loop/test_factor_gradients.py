"""LoRA-Pro's identity, its Sylvester equation against scipy-free brute force, and LoRA+'s two rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.loop import factor_gradients
from atelier.training.loop.factor_gradients import _sylvester, apply_lora_pro, lora_plus_groups, lora_pro_gradients

F64 = torch.float64


@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("shape", [(9, 14, 3), (14, 9, 1)])
def test_the_product_moves_along_the_projected_gradient(monkeypatch, scale: float, shape: tuple[int, int, int]):
    monkeypatch.setattr(factor_gradients, "_DAMPING", 0.0)
    rows, columns, rank = shape
    up, down = torch.randn(rows, rank, dtype=F64), torch.randn(rank, columns, dtype=F64)
    gradient = torch.randn(rows, columns, dtype=F64)
    of_up, of_down = lora_pro_gradients(up, down, scale * gradient @ down.T, scale * up.T @ gradient, scale)
    columns_of_up, rows_of_down = up @ torch.linalg.pinv(up), torch.linalg.pinv(down) @ down
    expected = columns_of_up @ gradient + (gradient - columns_of_up @ gradient) @ rows_of_down
    assert_close(scale * (up @ of_down + of_up @ down), expected, rtol=0, atol=1e-12)


def test_no_other_step_comes_nearer_to_the_gradient(monkeypatch):
    """Least squares over all steps of both factors, found by the pseudoinverse of the whole linear map."""
    monkeypatch.setattr(factor_gradients, "_DAMPING", 0.0)
    up, down, gradient = (torch.randn(*shape, dtype=F64) for shape in ((5, 2), (2, 6), (5, 6)))
    of_up, of_down = lora_pro_gradients(up, down, gradient @ down.T, up.T @ gradient, 1.0)
    five, six = torch.eye(5, dtype=F64), torch.eye(6, dtype=F64)
    table = torch.cat([torch.kron(five, down.T.contiguous()), torch.kron(up, six)], 1)
    best = table @ torch.linalg.pinv(table) @ gradient.flatten()
    assert_close((up @ of_down + of_up @ down).flatten(), best, rtol=0, atol=1e-11)


def test_of_all_such_steps_it_is_the_nearest_to_the_raw_gradients(monkeypatch):
    """Adding X @ down to one factor's step and taking up @ X off the other's leaves the product's as it is."""
    monkeypatch.setattr(factor_gradients, "_DAMPING", 0.0)
    up, down, gradient = (torch.randn(*shape, dtype=F64) for shape in ((5, 2), (2, 6), (5, 6)))
    raw_up, raw_down = 0.5 * gradient @ down.T, 0.5 * up.T @ gradient
    of_up, of_down = lora_pro_gradients(up, down, raw_up, raw_down, 0.5)

    def distance(x: torch.Tensor) -> float:
        return ((of_up - up @ x - raw_up).square().sum() + (of_down + x @ down - raw_down).square().sum()).item()

    nearest = distance(torch.zeros(2, 2, dtype=F64))
    assert all(distance(size * torch.randn(2, 2, dtype=F64)) > nearest for size in (0.001, 0.1) for _ in range(20))


def test_sylvester_solves_its_equation():
    a, b = (torch.randn(4, 9, dtype=F64) for _ in range(2))
    left, right, sides = a @ a.T, b @ b.T, torch.randn(4, 4, dtype=F64)
    found = _sylvester(left, right, sides)
    one = torch.eye(4, dtype=F64)
    brute = torch.linalg.solve(torch.kron(left, one) + torch.kron(one, right), sides.flatten()).reshape(4, 4)
    assert_close(found, brute, rtol=1e-9, atol=1e-9)


def adapters_with_gradients(up: float) -> Any:
    adapters = create_adapters("lora", {"rank": 3, "alpha": 6}, [Spec("unet.a", (9, 14)), Spec("unet.b", (7, 5))])
    for adapter in adapters:
        assert isinstance(adapter.up, torch.nn.Parameter)
        torch.nn.init.normal_(adapter.up, std=up)
        adapter.delta(torch.zeros(adapter.spec.shape)).sin().sum().backward()
    return adapters


def test_at_the_start_the_gradients_are_left_alone():
    adapters = adapters_with_gradients(0.0)
    before = [p.grad.clone() for p in adapters.parameters()]
    apply_lora_pro(adapters)
    assert all(torch.equal(p.grad, old) for p, old in zip(adapters.parameters(), before, strict=True))


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_a_whole_set_is_corrected_and_stays_finite_near_the_start(size: float):
    adapters = adapters_with_gradients(size)
    before = [p.grad.clone() for p in adapters.parameters()]
    apply_lora_pro(adapters)
    assert all(p.grad.isfinite().all() for p in adapters.parameters())
    assert not any(torch.allclose(p.grad, old) for p, old in zip(adapters.parameters(), before, strict=True))


def test_other_kinds_are_left_alone():
    adapters = create_adapters("miss", {"rank": 3}, [Spec("unet.a", (9, 14))])
    adapters["unet.a"].delta(torch.zeros(9, 14)).sum().backward()
    before = [p.grad for p in adapters.parameters()]
    apply_lora_pro(adapters)
    assert all(p.grad is old for p, old in zip(adapters.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["lora", "hydra", "wara", "loretta", "lokr"])
def test_plus_gives_up_the_larger_rate_and_forgets_nobody(kind: str):
    adapters = create_adapters(kind, {}, [Spec("unet.a", (12, 16)), Spec("unet.up_b", (8, 8))])
    slow, fast = lora_plus_groups(adapters, 8.0)
    assert (slow["ratio"], fast["ratio"]) == (1.0, 8.0)
    everyone = [id(p) for group in (slow, fast) for p in group["params"]]
    assert sorted(everyone) == sorted(id(p) for p in adapters.parameters())
    ups = {id(p) for name, p in adapters.named_parameters() if ".up" in name}
    assert {id(p) for p in fast["params"]} == ups


def test_plus_needs_no_second_group_for_a_kind_without_up():
    adapters = create_adapters("svdiff", {}, [Spec("unet.a", (12, 16))])
    (only,) = lora_plus_groups(adapters)
    assert only["ratio"] == 1.0
