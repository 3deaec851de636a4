"""Adapters of several members as one, against the weighted sum of their dense updates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.fusion.team import combine_members, within_budget
from atelier.adapters.kinds.catalog import create_adapters

LINEAR, CONV = Spec("unet.a", (12, 10)), Spec("unet.b", (8, 4, 3, 3))
SPECS = (LINEAR, CONV)
WEIGHTS = (8.0, 3.0, 5.0)


def no_base(name: str) -> Tensor:
    raise AssertionError(f"{name} of the base model was asked for")


def lora(seed: int, rank: int = 2, specs: tuple[Spec, ...] = SPECS) -> AdapterSet:
    """Members have one common start of ``down``, from which each has moved."""
    start, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    pairs = {}
    for spec in specs:
        common = torch.randn(rank, spec.columns, generator=start)
        pairs[spec] = (torch.randn(spec.rows, rank, generator=own),
                       common + 0.3 * torch.randn(rank, spec.columns, generator=own))
    return lora_from_factors(pairs)


def lora_xs(seed: int, bases: int = 0) -> AdapterSet:
    adapters = create_adapters("lora-xs", {"rank": 3}, SPECS)
    values = {}
    for key, value in adapters.tensors().items():
        seeds = torch.Generator().manual_seed(seed if key.endswith("core") else bases)
        values[key] = torch.randn(value.shape, generator=seeds)
    adapters.load_tensors(values)
    return adapters


def deltas(adapters: AdapterSet) -> dict[str, Tensor]:
    return {one.spec.name: one.delta(torch.zeros(one.spec.shape)).flatten(1).detach() for one in adapters}


def ideal(members: list[AdapterSet]) -> dict[str, Tensor]:
    dense = [deltas(one) for one in members]
    return {spec.name: torch.stack([weight / sum(WEIGHTS) * one[spec.name]
                                    for weight, one in zip(WEIGHTS, dense, strict=True)]).sum(0) for spec in SPECS}


def error(adapters: AdapterSet, members: list[AdapterSet]) -> float:
    want, got = ideal(members), deltas(adapters)
    difference = torch.cat([(got[key] - want[key]).flatten() for key in want])
    return (difference.norm() / torch.cat([value.flatten() for value in want.values()]).norm()).item()


def combine(members: list[AdapterSet], method: str, rank: int | None = None) -> AdapterSet:
    return combine_members(list(zip(members, WEIGHTS, strict=True)), no_base, method, rank)


def test_stacked_factors_are_exact_whatever_the_ranks():
    members = [lora(1), lora(2, rank=3), lora(3, rank=1)]
    combined = combine(members, "stack")
    assert_close(deltas(combined), ideal(members))
    assert [len(one.down) for one in combined] == [6, 6]


def test_cores_between_common_bases_average_exactly():
    members = [lora_xs(seed) for seed in (1, 2, 3)]
    combined = combine(members, "mean")
    assert combined.kind == "lora-xs"
    assert_close(deltas(combined), ideal(members), rtol=1e-5, atol=1e-5)


def test_at_one_rank_svd_is_nearest_and_the_correction_beats_the_mean():
    members = [lora(seed) for seed in (1, 2, 3)]
    nearest, corrected, mean = (error(combine(members, method), members) for method in ("svd", "corrected", "mean"))
    assert 0.05 < nearest < corrected < mean


def test_the_correction_is_the_least_squares_solution():
    members = [lora(seed) for seed in (1, 2, 3)]
    corrected = combine(members, "corrected")
    want = ideal(members)
    for one in corrected:
        solved = torch.linalg.lstsq(one.down.T, want[one.spec.name].T).solution.T
        assert_close(one.factors()[0], solved, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", ["stack", "svd", "mean", "corrected"])
def test_one_member_alone_and_the_order_of_members_change_nothing(method: str):
    members = [(lora(1), 8.0), (lora(2), 3.0)]
    assert_close(deltas(combine_members(members[:1], no_base, method)), deltas(members[0][0]), rtol=1e-3, atol=1e-3)
    assert_close(deltas(combine_members(members, no_base, method)),
                 deltas(combine_members(members[::-1], no_base, method)), rtol=1e-4, atol=1e-4)


def test_a_budget_keeps_the_largest_directions_for_their_cost():
    up, down = torch.eye(12)[:, :2] * torch.tensor([5.0, 1.0]), torch.eye(10)[:2]
    wide_up, wide_down = torch.eye(8)[:, :2] * torch.tensor([4.0, 3.0]), torch.eye(36)[:2]
    adapters = lora_from_factors({LINEAR: (up, down), CONV: (wide_up, wide_down)})
    kept = within_budget(adapters, 22 + 44)   # 25/22 and 16/44 for each value, before 9/44 and 1/22
    assert [len(one.down) for one in kept] == [1, 1]
    assert_close(deltas(kept)[CONV.name].norm(), torch.tensor(4.0))
    assert [one.spec for one in within_budget(adapters, 43)] == [LINEAR]
    with pytest.raises(SettingError, match="at least 22"):
        within_budget(adapters, 21)


@pytest.mark.parametrize(("members", "method", "says"), [
    ([lora(1), lora(2, rank=3)], "mean", "Use stack or svd"),
    ([lora(1), lora(2, rank=3)], "corrected", "Use stack or svd"),
    ([lora(1), lora(2, specs=(LINEAR,))], "mean", "Use stack or svd"),
    ([lora(1), lora_xs(1)], "mean", "one kind"),
    ([lora_xs(1), lora_xs(2, bases=1)], "mean", "continue from one adapter"),
    ([create_adapters("waveft", {}, (LINEAR,))], "corrected", "products of two factors"),
    ([lora(1)], "median", "There is no method"),
])   # fmt: skip
def test_what_can_not_be_combined_is_said(members: list[AdapterSet], method: str, says: str):
    with pytest.raises(SettingError, match=says):
        combine_members([(one, 1.0) for one in members], no_base, method)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_none_are_refused(weight: float):
    with pytest.raises(SettingError, match="above 0"):
        combine_members([(lora(1), 1.0), (lora(2), weight)], no_base, "stack")
