"""Intruder dimensions that were planted, and updates that have none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.training.measures.intruder_dimensions import TOP, count_intruders

SIZE, WIDE = 24, (24, 4, 3, 3)
NAMES = {"unet.a": (SIZE, SIZE), "unet.b": WIDE}


def weight_of(name: str) -> Tensor:
    """Singular vectors are the axes, singular values 24, 23 … 1."""
    spec = Spec(name, NAMES[name])
    return (torch.eye(SIZE, spec.columns) * torch.arange(SIZE, 0, -1)[:, None]).view(spec.shape)


def rank_one(up: Tensor, size: float, layer: str = "unet.a") -> tuple[Spec, tuple[Tensor, Tensor]]:
    spec = Spec(layer, NAMES[layer])
    down = torch.zeros(1, spec.columns)
    down[0, -1] = size
    return spec, (up[:, None] / up.norm(), down)


@pytest.mark.parametrize(("strength", "intruders"), [(1.0, 1), (0.001, 0)])
def test_a_strong_direction_that_the_base_has_not_is_one(strength: float, intruders: int):
    adapters = lora_from_factors(dict([rank_one(torch.ones(SIZE), 500.0), rank_one(torch.eye(SIZE)[0], 9.0, "unet.b")]))
    found = count_intruders(adapters, weight_of, strength)
    assert (found.count, found.directions) == (intruders, 2 * TOP)
    assert found.layers == (("unet.a",) if intruders else ())


def test_directions_of_the_base_that_grow_are_none():
    spec = Spec("unet.a", NAMES["unet.a"])
    stronger = lora_from_factors({spec: (torch.eye(SIZE), 3 * weight_of("unet.a"))})
    assert count_intruders(stronger, weight_of).count == 0
