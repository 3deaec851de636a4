"""Weaving updates into weights against dense arithmetic, and the forms a factor can be kept in against each other."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.kernels.factor_forms import DenseFactor, factor_matrices
from atelier.kernels.merge_low_rank import LowRankUpdate, merge_low_rank
from atelier.kernels.tensor_networks import KhatriRaoFactor, TensorTrainFactor


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_weight_and_its_update_rounded_once(dtype: torch.dtype):
    weights = [normal(6, 8).to(dtype), normal(4, 3, 3, 3).to(dtype)]
    before = [weight.clone() for weight in weights]
    factors = [(normal(6, 2), normal(2, 8)), (normal(4, 5), normal(5, 27))]
    updates = [LowRankUpdate(DenseFactor(up), DenseFactor(down.T), -0.7) for up, down in factors]
    found = merge_low_rank(weights, updates)
    for weight, kept, woven, (up, down) in zip(weights, before, found, factors, strict=True):
        exact = weight.double() - 0.7 * (up.double() @ down.double()).view_as(weight)
        assert woven.dtype == dtype
        assert torch.equal(weight, kept)
        assert_close(woven.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_no_weights_are_no_work():
    assert merge_low_rank([], []) == []


def test_products_are_a_cp_tensor():
    outer, inner = normal(3, 2), normal(4, 2)
    assert_close(KhatriRaoFactor(outer, inner).matrix(), torch.einsum("ar,br->abr", outer, inner).reshape(12, 2))


def test_trains_are_products_of_cores_either_way_round():
    first, middle, last = normal(2, 3), normal(4, 3, 5), normal(6, 5, 7)
    expected = torch.einsum("ax,bxy,cyr->abcr", first, middle, last)
    assert_close(TensorTrainFactor(first, middle, last).matrix(), expected.reshape(48, 7))
    turned = TensorTrainFactor(first, middle, last, turned=True).matrix()
    assert_close(turned, expected.permute(2, 1, 0, 3).reshape(48, 7))


@pytest.mark.parametrize("shape", [(10, 6), (7, 9), (5, 3, 3, 3), (1, 1)])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("wara", {"rank": 2, "smooth_rank": 3, "alpha": 5.0}), ("wara", {"levels": 2}), ("wara", {"wavelet": "db2"}),
     ("wara", {"bands": "details"}), ("lorta", {"alpha": 5.0}), ("loretta", {"alpha": 5.0}), ("lora", {})],
    ids=["wara", "levels", "db2", "details", "lorta", "loretta", "lora"],
)   # fmt: skip
@pytest.mark.parametrize("name", ["unet.a.to_q", "unet.a.to_out.0"])
def test_a_kind_has_the_same_factors_in_every_form(kind: str, settings: dict, shape: tuple[int, ...], name: str):
    adapters = create_adapters(kind, settings, [Spec(name, shape)])
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    forms, factors = adapters[name].structured_factors(), adapters[name].factors()
    assert forms is not None
    assert factors is not None
    for found, expected in zip(factor_matrices(*forms), factors, strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
