"""The change that an adapter makes to predictions, in units of the prompt's own effect."""

from __future__ import annotations

import pytest
import torch

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.measures.prediction_change import TIMESTEPS, encode_prompts, predict_prompts, relative_changes


def test_the_scale_is_what_the_prompt_itself_changes():
    base, empty = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    assert relative_changes(base, empty, torch.tensor([[0.0, 0.0]])).item() == pytest.approx(1)
    assert relative_changes(base, empty, torch.tensor([[3.0, 9.0]])).item() == pytest.approx(1)   # 25 of 25
    assert relative_changes(base, empty, base).item() == 0
    assert torch.isfinite(relative_changes(empty, empty, base)).all()


def test_predictions_repeat_and_change_with_an_adapter(model):
    texts = encode_prompts(model, ["a fox", "a house"])
    first = predict_prompts(model, texts)
    assert first.shape == (2, len(TIMESTEPS), 4, 8, 8)
    assert torch.equal(first, predict_prompts(model, texts))
    assert not torch.equal(first[0], first[1])
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention"))
    with mount(model.models(), Mix(((adapters, 1.0),))):
        torch.testing.assert_close(predict_prompts(model, texts), first)   # an adapter starts at nothing
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    with mount(model.models(), Mix(((adapters, 1.0),))):
        assert not torch.allclose(predict_prompts(model, texts), first, atol=1e-3)
