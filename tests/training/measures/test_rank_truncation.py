"""Size against likeness: the errors are those of the truncated matrices themselves, and the knee is where it bends."""

from __future__ import annotations

import pytest
import torch

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.measures.rank_truncation import SizePoint, knee, size_curve

SPECS = [Spec("unet.tall", (12, 5)), Spec("unet.wide", (6, 4, 3, 3))]


def no_weight(name: str) -> torch.Tensor:
    raise AssertionError(f"{name} was asked for")


def random_lora(rank: int):
    adapters = create_adapters("lora", {"rank": rank}, SPECS)
    torch.manual_seed(1)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    return adapters


def test_each_error_is_that_of_the_best_approximation():
    adapters = random_lora(5)
    points = size_curve(adapters, no_weight)
    assert [point.rank for point in points] == [1, 2, 4, 5]
    with torch.no_grad():
        matrices = [adapter.delta(torch.zeros(adapter.spec.shape)).flatten(1).double() for adapter in adapters]
    whole = torch.cat([matrix.flatten() for matrix in matrices]).square().sum()
    for point in points:
        rest = torch.tensor(0.0)
        for matrix in matrices:
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            cut = u[:, : point.rank] * s[: point.rank] @ v[: point.rank]
            rest += (matrix - cut).square().sum()
        assert point.error == pytest.approx((rest / whole).sqrt().item(), abs=2e-3)
        assert point.bytes == 4 * point.rank * (12 + 5 + 6 + 36)
    assert points[-1].error == pytest.approx(0, abs=1e-3)


def test_an_adapter_that_changes_nothing_has_no_error():
    points = size_curve(create_adapters("lora", {"rank": 2}, SPECS), no_weight)
    assert [point.error for point in points] == [0.0, 0.0]
    assert knee(points) is None


def test_a_kind_without_factors_is_measured_from_its_dense_change():
    adapters = create_adapters("loha", {"rank": 2}, SPECS)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    points = size_curve(adapters, lambda name: torch.zeros({spec.name: spec.shape for spec in SPECS}[name]))
    assert points[0].error > points[-1].error == pytest.approx(0, abs=1e-3)


def test_the_knee_is_where_the_curve_bends():
    points = [SizePoint(rank, rank, error) for rank, error in ((1, 0.9), (2, 0.5), (4, 0.1), (8, 0.08), (16, 0.07))]
    found = knee(points)
    assert found is not None and found.rank == 4
    straight = [SizePoint(rank, rank, error) for rank, error in ((1, 0.55), (2, 0.38), (4, 0.22), (8, 0.0))]
    assert knee(straight) is None
    flat = [SizePoint(rank, rank, 0.0) for rank in (1, 2, 4)]
    assert knee(flat) is flat[0]
