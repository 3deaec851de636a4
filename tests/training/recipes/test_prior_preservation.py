"""What prior preservation keeps: drawn by the untouched base, some of it without words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import tokenize
from atelier.training.recipes import prior_preservation as prior
from atelier.training.recipes.prior_preservation import draw_prior, prior_prompts, write_prior_file
from atelier.training.sampling.sample import draw_latents

CONFIG = TrainConfig(name="rex", subject="fox", prior_count=3)


def but(**changes: Any) -> TrainConfig:
    return replace(CONFIG, **changes)


def with_prompts(model: BaseModel, *prompts: str) -> BaseModel:
    return replace(model, info=replace(model.info, prior_prompts=prompts))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior, "PRIOR_STEPS", 2)


@pytest.mark.usefixtures("few_steps")
def test_the_pictures_are_the_untouched_base_s_own(model):
    config = but(seed=40, prior_count=10)
    prompts, drawn = prior_prompts(model, config), draw_prior(model, config)
    assert len(drawn) == 10
    for i in (0, 2, 9):
        expected = draw_latents(model, [prompts[i]], steps=2, seed=40 + i)[0]
        torch.testing.assert_close(drawn[i].mean, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(drawn[i].tokens, tokenize(model, [prompts[i]])[0])
        assert not drawn[i].std.any()
    assert not torch.allclose(drawn[0].mean, drawn[1].mean)
    again = draw_prior(model, config)
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(drawn, again, strict=True))


def test_the_prompts_are_the_base_s_own_list_over_and_over_and_every_third_is_empty(model):
    chosen = prior_prompts(with_prompts(model, "a house", "a key", "a star"), but(prior_count=8))
    assert chosen == ["a house", "a key", "", "a star", "a house", "", "a key", "a star"]


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [("", "a photo of fox"), ("a {trigger} {subject} at sea", "a fox at sea"), ("my {trigger}", "fox")],
)
def test_a_base_without_a_list_draws_the_class_alone(model, caption, prompt):
    assert prior_prompts(model, but(caption=caption, trigger="zxq")) == [prompt, prompt, ""]


@pytest.mark.usefixtures("few_steps")
def test_pictures_that_come_with_the_base_are_not_drawn_again(model, tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "PRIOR_FILE_COUNT", 4)
    here = replace(model, info=replace(model.info, folder=tmp_path, prior_prompts=("a house", "a key")))
    drawn = draw_prior(here, but(prior_count=4))
    write_prior_file(here, tmp_path / prior.PRIOR_FILE)
    monkeypatch.setattr(prior, "draw_latents", lambda *_, **__: pytest.fail("drawn again"))
    read = draw_prior(here, but(prior_count=3))
    assert len(read) == 3
    for ours, theirs in zip(read, drawn, strict=False):
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-3, atol=1e-3)   # stored in half precision
        assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("changed", [{"prior_prompts": ("a tree",)}, {}])
def test_pictures_of_other_prompts_or_too_few_are_drawn(model, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(prior, "PRIOR_FILE_COUNT", 3)
    here = replace(model, info=replace(model.info, folder=tmp_path, prior_prompts=("a house",)))
    write_prior_file(here, tmp_path / prior.PRIOR_FILE)
    other = replace(here, info=replace(here.info, **changed))
    config = but(prior_count=3 if changed else 4, seed=9)
    drawn = draw_prior(other, config)
    expected = draw_latents(other, [prior_prompts(other, config)[0]], steps=2, seed=9)[0]
    torch.testing.assert_close(drawn[0].mean, expected, rtol=1e-4, atol=1e-4)


def test_what_is_shipped_is_what_the_embedded_base_draws():
    model = load("embedded", "cpu")
    shipped = draw_prior(model, TrainConfig(prior_count=3))
    for i, prompt in enumerate(prior_prompts(model, TrainConfig(prior_count=3))):
        drawn = draw_latents(model, [prompt], steps=prior.PRIOR_STEPS, seed=i)[0]
        assert (shipped[i].mean - drawn).abs().mean() < 0.02   # a processor's rounding grows over the steps


@pytest.mark.parametrize(("side", "pictures"), [(32, 8), (64, 8), (256, 8), (512, 2), (768, 1), (1024, 1)])
def test_large_pictures_are_drawn_in_small_batches(side, pictures):
    assert prior.prior_batch_size(side) == pictures


def test_the_size_of_a_batch_does_not_matter(model, few_steps, monkeypatch):
    at_once = draw_prior(model, CONFIG)
    monkeypatch.setattr(prior, "MAX_PRIOR_BATCH", 1)
    alone = draw_prior(model, CONFIG)
    for one, other in zip(at_once, alone, strict=True):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("few_steps")
def test_prior_pictures_have_the_size_that_is_trained(model: BaseModel):
    small, own = (draw_prior(model, but(prior_count=1, resolution=side))[0] for side in (16, 0))
    assert own.mean.shape == (4, 8, 8) and own.sizes == (32, 32, 0, 0, 32, 32)
    assert small.mean.shape == (4, 4, 4) and small.sizes == (32, 32, 0, 0, 16, 16)
