"""The range of strength that is proposed for an adapter: from where it shows to where it disturbs other prompts."""

from __future__ import annotations

import pytest
import torch

from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.measures.strength_range import STRENGTHS, StrengthEffect, measure_strengths, propose_range


@pytest.mark.parametrize(("own", "others", "expected"), [
    (lambda s: s * s, lambda s: 0.01 * s, (0.5, 3.0)),      # shows late, harms nothing
    (lambda s: s, lambda s: 0.1 * s, (0.25, 1.25)),         # 0.15 is reached at 1.5
    (lambda s: s, lambda s: s, (0.25, 1.0)),                # too strong already: 1 stays
    (lambda s: 0.0, lambda s: 0.0, (0.25, 3.0)),            # does nothing at all
])  # fmt: skip
def test_the_range_follows_both_effects(own, others, expected: tuple[float, float]) -> None:
    assert propose_range([StrengthEffect(s, own(s), others(s)) for s in STRENGTHS]) == expected


def test_effects_grow_with_strength_and_the_model_is_as_before(model) -> None:
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention"))
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    effects = measure_strengths(model, adapters, "a fox")
    assert [effect.strength for effect in effects] == list(STRENGTHS)
    own = [effect.own for effect in effects]
    assert own == sorted(own) and 0 < own[0] < own[-1] and all(effect.others > 0 for effect in effects)
    assert all(torch.equal(before[name], value) for name, value in model.unet.state_dict().items())
