"""Sampling of examples: each as often as its weight says, and as ever where all weights are equal."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from atelier.training.base_models.base_model import BaseModel
from atelier.training.data.latent_cache import Example, encode_text, tokenize
from atelier.training.loop.batch import PromptEmbeddingCache, sample_examples


def example(weight: float, width: int = 8) -> Example:
    return Example(torch.zeros(4, 8, width), torch.ones(4, 8, width), torch.zeros(3, dtype=torch.int64), weight=weight)


@pytest.mark.parametrize("weights", [(1, 3, 4), (0.5, 0.25, 8), (1000, 1, 1)])
def test_examples_are_drawn_by_their_weights(weights: tuple[float, ...]) -> None:
    examples = [example(weight) for weight in weights]
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(id(each) for _ in range(1000) for each in sample_examples(examples, 4, generator))
    for each in examples:
        expected = each.weight / sum(weights)
        deviation = (expected * (1 - expected) / 4000) ** 0.5
        assert abs(drawn[id(each)] / 4000 - expected) < 4 * deviation


def test_weights_count_within_a_size_too() -> None:
    wide, light, heavy = example(1, 16), example(1), example(9)
    generator = torch.Generator().manual_seed(0)
    batches = [sample_examples([wide, light, heavy], 4, generator) for _ in range(600)]
    assert all(len({each.mean.shape for each in batch}) == 1 for batch in batches)
    first = Counter(id(batch[0]) for batch in batches)
    assert 20 < first[id(wide)] < 100   # of 600, by its weight of 1 in 11
    others = Counter(id(each) for batch in batches if batch[0] is not wide for each in batch[1:])
    assert others[id(heavy)] / sum(others.values()) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_equal_weights_draw_as_recipes_without_weights_always_have(weight: float) -> None:
    examples = [example(weight) for _ in range(5)]
    drawn = sample_examples(examples, 6, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    numbers = [int(torch.randint(5, (1,), generator=generator)), *torch.randint(5, (5,), generator=generator).tolist()]
    assert [next(i for i, each in enumerate(examples) if each is one) for one in drawn] == numbers


@pytest.mark.parametrize("parts", [("unet",), ("unet", "text_encoder")])   # encoded once, and in every step
def test_captions_are_read_by_the_layers_that_are_chosen(model: BaseModel, trained, parts: tuple[str, ...]) -> None:
    tokens = tokenize(model, ["a fox"])
    rows = [PromptEmbeddingCache(model, trained(model, parts), skip)([tokens[0]]).features for skip in (0, 1)]
    for skip, found in enumerate(rows):
        torch.testing.assert_close(found, encode_text(model, tokens, skip).features, rtol=0, atol=0)
    assert not torch.allclose(*rows)
