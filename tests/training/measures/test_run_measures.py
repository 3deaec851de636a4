"""What a running training measures: nothing at its start, and what its weights change later."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop.batch import PromptEmbeddingCache
from atelier.training.loop.health import NOISE_LEVELS
from atelier.training.measures.run_measures import RunMeasures, other_prompts

CONFIG = TrainConfig(name="rex", subject="fox", batch=3, prior_count=3, validate_every=50)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, train_text_encoder=True)], ids=["unet", "with text"])
def test_measurements_start_at_nothing_and_follow_the_weights(model, config):
    parts = {"unet": model.unet, **({"text_encoder": model.text_encoder} if config.train_text_encoder else {})}
    adapters = create_adapters("lora", {"rank": 2}, find_targets(parts, "attention"))
    torch.manual_seed(4)
    pictures = [Example(torch.randn(4, 8, 8), torch.zeros(4, 8, 8), row) for row in tokenize(model, ["a rex fox"] * 4)]
    pairs = [(pictures[0], pictures[1]), (pictures[2], pictures[3])]
    measure = RunMeasures.of(model, config, PromptEmbeddingCache(model, adapters), pairs)
    state = torch.random.get_rng_state()
    start = measure(adapters, 0)
    assert torch.equal(torch.random.get_rng_state(), state), "the run's own random numbers are not touched"
    assert start.memorization == 0.5
    assert max(map(abs, (start.member_gain, start.held_out_gain, start.drift))) < 1e-5
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    later = measure(adapters, 7)
    assert later.step == 7 and later.drift > 0.01 and abs(later.held_out_gain) > 1e-4
    assert later.held_out_gain == pytest.approx(sum(later.by_timestep) / len(NOISE_LEVELS), abs=1e-3)
    assert later.memory > 1_000_000
    again = measure(adapters, 7)
    assert again == replace(later, memory=again.memory)


def test_other_prompts_never_name_the_subject(model):
    prompts = other_prompts(model)
    assert len(prompts) == 3 and len(set(prompts)) == 3
    assert not any("rex" in prompt for prompt in prompts)
