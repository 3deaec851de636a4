"""Prompts of regions: a region that is everything is the prompt itself, whatever reads it and however long it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.fusion.live import Fusion, PromptRegion, WeightedAdapter, with_prompt_regions
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel
from atelier.training.sampling.sample import DrawRequest, draw

REQUEST = DrawRequest(prompt="an owl", steps=2, count=2, width=32, height=32, seed=3)
LONG = "a red fox, " * 12   # more than the text encoder reads at once


def mean_difference(ones: list[Image.Image], others: list[Image.Image]) -> float:
    return float(np.mean([np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean()
                          for one, other in zip(ones, others, strict=True)]))   # fmt: skip


def drawn(model: BaseModel, prompt: str, mix: Mix | Fusion = Mix()) -> list[Image.Image]:
    return draw(model, DrawRequest.from_dict({**REQUEST.to_dict(), "prompt": prompt}), mix)


@pytest.mark.parametrize("prompt", ["a red fox", LONG])
def test_a_region_that_is_everything_is_its_prompt(model: BaseModel, prompt: str) -> None:
    region = with_prompt_regions(Mix(), [PromptRegion(prompt, torch.ones(2, 2))])
    expected = drawn(model, prompt)
    assert mean_difference(drawn(model, "an owl", region), expected) < 0.05 < mean_difference(
        drawn(model, "an owl"), expected)   # fmt: skip


def test_the_prompt_of_a_region_is_read_with_the_adapters_that_act_there(model: BaseModel) -> None:
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": 2}, find_targets(model.models(), "attention")).requires_grad_(False)
    for parameter in adapters.parameters():
        parameter.data.normal_(std=0.1)
    assert adapters.components() > {"unet"}
    part = WeightedAdapter(adapters, 1.0, region=torch.ones(2, 2), prompt="a red fox")
    expected = drawn(model, "a red fox", Mix(((adapters, 1.0),)))
    assert mean_difference(drawn(model, "an owl", Fusion((part,))), expected) < 0.05
    nowhere = WeightedAdapter(adapters, 1.0, region=torch.zeros(2, 2), prompt="a red fox")
    assert mean_difference(drawn(model, "an owl", Fusion((nowhere,))), drawn(model, "an owl")) < 0.05
