"""The contract of an adapter, on a kind that is not in the catalog: one that has no low-rank pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import Settings

NAME = "unet.layer"


class Amplify(Adapter):
    """ΔW = gain · W: depends on the original weight. Parameters: 1."""

    kind = "amplify"
    title = "Amplify"
    settings = Settings

    def __init__(self, spec: Spec, gain: float) -> None:
        super().__init__(spec, Settings())
        self.gain = nn.Parameter(torch.tensor(gain))

    def delta(self, weight: Tensor) -> Tensor:
        return self.gain * weight


def amplify(module: nn.Linear | nn.Conv2d, gain: float) -> AdapterSet:
    return AdapterSet(Amplify, Settings(), [Amplify(Spec(NAME, tuple(module.weight.shape)), gain)])


@pytest.mark.parametrize("attach", [mount, merge])
@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(6, 4), (3, 6)), (nn.Conv2d(6, 4, 3, padding=1, stride=2), (2, 6, 5, 5))],
    ids=["linear", "conv"],
)
def test_every_update_is_computed_from_the_original_weight(attach, module, shape: tuple[int, ...]):
    """Gains of 1 and 2 amplify fourfold in either order; computed one upon the other they would sixfold."""
    x = torch.randn(shape)
    models = {"unet": nn.ModuleDict({"layer": module})}
    without_bias = module(x) - module(torch.zeros_like(x))
    one, two = (amplify(module, 1.0), 1.0), (amplify(module, 2.0), 1.0)
    for parts in ((one, two), (two, one)):
        with torch.no_grad(), attach(models, Mix(parts)):
            assert_close(module(x) - module(torch.zeros_like(x)), 4 * without_bias)


def test_a_kind_that_gives_nothing_says_so():
    with pytest.raises(NotImplementedError, match="Adapter implements neither"):
        Adapter(Spec(NAME, (4, 6)), Settings()).delta(torch.zeros(4, 6))


def test_spec_counts_rows_and_columns_of_the_weight_as_a_matrix():
    assert (Spec(NAME, (4, 6)).rows, Spec(NAME, (4, 6)).columns) == (4, 6)
    assert (Spec(NAME, (4, 6, 3, 3)).rows, Spec(NAME, (4, 6, 3, 3)).columns) == (4, 54)


def test_set_knows_its_components():
    specs = [Spec("unet.a.b", (4, 4)), Spec("text_encoder.c", (4, 4))]
    adapters = AdapterSet(Amplify, Settings(), [Amplify(spec, 1.0) for spec in specs])
    assert adapters.components() == {"unet", "text_encoder"}
    assert adapters.specs == specs
    assert len(adapters) == 2
    assert list(adapters.tensors()) == ["unet.a.b.gain", "text_encoder.c.gain"]


@pytest.mark.parametrize(
    ("tensors", "named"),
    [({}, "unet.layer.gain"), ({"unet.layer.gain": torch.ones(2)}, "unet.layer.gain"),
     ({"unet.layer.gain": torch.tensor(1.0), "unet.layer.extra": torch.tensor(1.0)}, "unet.layer.extra")],
    ids=["missing", "misshapen", "unexpected"],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, Tensor], named: str):
    with pytest.raises(ValueError, match=named):
        amplify(nn.Linear(6, 4), 1.0).load_tensors(tensors)
