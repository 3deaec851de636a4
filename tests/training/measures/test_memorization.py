"""The membership test: paired noise, an AUC that another way of counting confirms, and what it may cost."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop.batch import PromptEmbeddingCache
from atelier.training.loop.health import NOISE_LEVELS
from atelier.training.measures.memorization import (
    Membership,
    gains,
    make_pairs,
    measure_pairs,
    membership_auc,
)

CONFIG = TrainConfig(name="rex", subject="fox")


def area_under_roc(members: Tensor, others: Tensor) -> float:
    """The integral of the ROC curve, threshold by threshold."""
    thresholds = torch.cat([members, others]).unique().flip(0)
    rates = [(0.0, 0.0), *((float((others >= t).float().mean()), float((members >= t).float().mean()))
                           for t in thresholds)]   # fmt: skip
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(rates))


@pytest.mark.parametrize("seed", range(5))
def test_the_auc_is_the_area_under_the_roc_curve(seed):
    generator = torch.Generator().manual_seed(seed)
    gain = torch.randint(0, 6, (2, 7, 1), generator=generator).float()   # with ties
    gain[0] += seed / 2
    assert membership_auc(gain) == pytest.approx(area_under_roc(gain[0, :, 0], gain[1, :, 0]), abs=1e-6)


def test_timesteps_are_not_compared_with_each_other():
    easy_and_hard = torch.tensor([0.9, 0.1])
    members = torch.stack([easy_and_hard, easy_and_hard])
    assert membership_auc(torch.stack([members + 0.01, members])) == 1.0
    assert membership_auc(torch.stack([members, members])) == 0.5


def example(model: BaseModel, value: float, width: int = 8) -> Example:
    mean = torch.arange(4.0 * 8 * width).reshape(4, 8, width) * value
    return Example(mean, torch.zeros_like(mean), tokenize(model, ["a rex fox"])[0])


def test_pairs_share_noise_and_timesteps(model):
    members, held_out = [example(model, 0.01), example(model, 0.02)], [example(model, 0.03)]
    pairs = Membership.of(make_pairs(members, held_out, [], most=8), 1000)
    assert torch.equal(pairs.members.timesteps, pairs.others.timesteps)
    assert pairs.members.timesteps.tolist() == [int(share * 1000) for share in NOISE_LEVELS] * 2
    assert all(map(torch.equal, pairs.members.noise, pairs.others.noise))
    assert all(each is held_out[0] for each in pairs.others.examples)
    assert len({noise.sum().item() for noise in pairs.members.noise}) == 8


def test_a_member_without_a_held_out_picture_of_its_size_meets_its_own_view(model):
    members, views = [example(model, i / 100) for i in range(1, 4)], [example(model, i / 10) for i in range(1, 4)]
    assert make_pairs(members, [], views, most=8) == list(zip(members, views, strict=True))[:2]
    wide, square = example(model, 0.03, width=16), example(model, 0.04)
    assert make_pairs(members[:1], [wide], views, most=8) == [(members[0], views[0])]
    assert make_pairs([wide, *members], [square], [], most=99) == [(member, square) for member in members]
    assert make_pairs(members, [], [], most=8) == []
    assert len(make_pairs(members, [], views, most=1)) == 1


def test_losses_are_those_of_the_model_as_it_is(model):
    pairs = Membership.of([(example(model, 0.01), example(model, 0.02))], 1000)
    adapters: AdapterSet = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention"))
    text = PromptEmbeddingCache(model, adapters)
    base = pairs.losses(model, CONFIG, text)
    assert base.shape == (2, 1, len(NOISE_LEVELS))
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with mount(model.models(), Mix(((adapters, 1.0),))):
        now = pairs.losses(model, CONFIG, text)
    assert not torch.allclose(base, now)
    assert torch.equal(gains(base, base), torch.zeros_like(base))
    # By hand: the first member at the second timestep.
    noise, t = pairs.members.noise[1], pairs.members.timesteps[1]
    noisy = model.scheduler.add_noise(pairs.members.latents[1][None], noise[None], t[None])
    target = model.scheduler.get_velocity(pairs.members.latents[1][None], noise[None], t[None])
    with torch.no_grad():
        features = model.text_encoder(pairs.members.examples[1].tokens[None])[0]
        answer = model.unet(noisy, t, features).sample
    assert base[0, 0, 1].item() == pytest.approx((answer - target).square().mean().item(), rel=1e-5)


def test_a_measurement_costs_at_most_a_fortieth_of_the_steps_before_it():
    for batch in (6, 12, 96):
        pairs = measure_pairs(batch, every=50)
        assert 2 * pairs <= 3 * batch * 50 / 40 or pairs == len(NOISE_LEVELS)
    assert measure_pairs(1, every=1) == len(NOISE_LEVELS), "one pair of pictures is needed"
    assert measure_pairs(1000, every=10**6) == 64
