"""The interference report against updates whose overlap is known, and against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.imported_layers import create_imported
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.fusion.interference import excess_overlap, interference_of_factors, measure_interference

ROWS, COLUMNS = 12, 10


def models() -> dict[str, nn.Module]:
    return {"unet": nn.ModuleDict({"a": nn.Linear(COLUMNS, ROWS), "b": nn.Linear(COLUMNS, ROWS)})}


def adapter(up: Tensor, down: Tensor, layer: str = "a") -> AdapterSet:
    return lora_from_factors({Spec(f"unet.{layer}", (ROWS, COLUMNS)): (up, down)})


def axes(size: int, *places: int) -> Tensor:
    return torch.eye(size)[list(places)]


@pytest.mark.parametrize(("places", "overlap"), [((0, 1), 1.0), ((1, 2), 0.5), ((4, 5), 0.0)])
def test_overlap_is_the_share_of_directions_in_common(places: tuple[int, int], overlap: float):
    one = adapter(axes(ROWS, 0, 1).T, axes(COLUMNS, 0, 1))
    two = adapter(axes(ROWS, *places).T, axes(COLUMNS, *places))
    [meeting] = measure_interference(models(), Mix(((one, 1.0), (two, 0.5)))).meetings
    assert_close([meeting.rows, meeting.columns], [overlap, overlap], rtol=0, atol=1e-6)
    assert (excess_overlap(meeting) > 0.3) == (overlap >= 0.5)


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_cancelling_is_what_the_dense_sum_loses(strength: float):
    torch.manual_seed(1)
    pairs = [(torch.randn(ROWS, 3), torch.randn(3, COLUMNS)) for _ in range(3)]
    parts = tuple((adapter(*pair), strength if i else 1.0) for i, pair in enumerate(pairs))
    deltas = [(up @ down) * scale for (up, down), (_, scale) in zip(pairs, parts, strict=True)]
    found = measure_interference(models(), Mix(parts))
    expected = 1 - sum(deltas).square().sum() / sum(delta.square().sum() for delta in deltas)   # type: ignore[union-attr]
    assert_close(torch.tensor(found.cancelled["unet.a"]), expected, rtol=1e-4, atol=1e-5)
    assert_close(torch.tensor(found.lost), expected, rtol=1e-4, atol=1e-5)
    cosines = {meeting.pair: meeting.cosine for meeting in found.meetings}
    flat = [delta.flatten() for delta in deltas]
    for (i, j), cosine in cosines.items():
        assert_close(torch.tensor(cosine), torch.cosine_similarity(flat[i], flat[j], dim=0), rtol=1e-4, atol=1e-5)


def test_an_adapter_and_its_opposite_cancel_whole_and_twice_itself_reinforces():
    one = adapter(axes(ROWS, 0).T, axes(COLUMNS, 0))
    assert measure_interference(models(), Mix(((one, 1.0), (one, -1.0)))).lost == pytest.approx(1.0)
    assert measure_interference(models(), Mix(((one, 1.0), (one, 1.0)))).lost == pytest.approx(-1.0)


def test_layers_that_only_one_changes_don_t_meet():
    one, two = (adapter(axes(ROWS, 0).T, axes(COLUMNS, 0), layer) for layer in "ab")
    found = measure_interference(models(), Mix(((one, 1.0), (two, 1.0))))
    assert (found.meetings, found.cancelled, found.lost) == ((), {}, 0.0)
    assert found.overlap((0, 1)) == 0.0
    assert measure_interference(models(), Mix(((one, 1.0), (one, 0.0)))).meetings == ()


def test_random_updates_overlap_as_chance_says():
    torch.manual_seed(0)
    overlaps, expected = [], 3 / (ROWS * COLUMNS) ** 0.5
    for _ in range(200):
        parts = tuple((adapter(torch.randn(ROWS, 3), torch.randn(3, COLUMNS)), 1.0) for _ in range(2))
        [meeting] = measure_interference(models(), Mix(parts)).meetings
        assert meeting.chance == pytest.approx(expected)
        overlaps.append((meeting.rows * meeting.columns) ** 0.5)
    assert sum(overlaps) / len(overlaps) == pytest.approx(expected, abs=0.03)


def test_factors_alone_say_the_same_as_the_updates_on_the_base():
    torch.manual_seed(2)
    parts = tuple((adapter(torch.randn(ROWS, 3), torch.randn(3, COLUMNS)), scale) for scale in (0.8, -0.4, 0.0))
    alone, mounted = interference_of_factors(Mix(parts)), measure_interference(models(), Mix(parts))
    assert alone is not None
    assert alone.lost == pytest.approx(mounted.lost, abs=1e-5)
    assert [(m.layer, m.pair) for m in alone.meetings] == [(m.layer, m.pair) for m in mounted.meetings]
    for one, two in zip(alone.meetings, mounted.meetings, strict=True):
        assert (one.cosine, one.rows, one.weight) == pytest.approx((two.cosine, two.rows, two.weight), abs=1e-4)


def test_a_dense_update_has_no_factors():
    dense = create_imported({Spec("unet.a", (ROWS, COLUMNS)): {"diff": torch.randn(ROWS, COLUMNS)}})
    assert interference_of_factors(Mix(((dense, 1.0), (adapter(axes(ROWS, 0).T, axes(COLUMNS, 0)), 1.0)))) is None
