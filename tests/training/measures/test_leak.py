"""Words that leak: what counts as an ordinary word, and that the word an adapter answers to is found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import PromptEmbeddings
from atelier.training.measures import leak
from atelier.training.measures.leak import LEAK, WordLeak, caption_words, measure_leaks


def test_ordinary_words_are_those_of_the_captions_but_the_trigger_and_little_words():
    captions = ["A photo of a zorp fox, on a RED cushion", "the zorp fox at 5 o'clock"]
    assert caption_words(captions, "zorp") == ["photo", "fox", "red", "cushion", "clock"]
    assert caption_words(["my old zorp"], "old zorp") == ["my"]
    assert caption_words([], "zorp") == []


def test_a_word_leaks_from_half_of_the_triggers_effect_on():
    assert WordLeak("red", LEAK, True).leaks and not WordLeak("red", LEAK - 0.01, True).leaks


def test_the_word_that_draws_the_subject_comes_first(model, monkeypatch):
    """An adapter that acts on two words alone, one of them half as strongly."""
    effects = {"zorp fox": 1.0, "red": 0.75, "blue": -0.5}
    direction = torch.arange(3.0)
    texts: list[str] = []

    def encode(_model, prompts):
        texts[:] = prompts
        return [PromptEmbeddings(torch.tensor(float(i))) for i in range(len(prompts))]

    calls = iter([0.0, 1.0])   # without the adapter, then with it

    def predict(_model, found) -> Tensor:
        strength = next(calls)
        words = [text.removeprefix("a photo of ") for text in texts]
        return torch.stack([strength * effects.get(word, 0.0) * direction for word in words])[: len(found)]

    monkeypatch.setattr(leak, "encode_prompts", encode)
    monkeypatch.setattr(leak, "predict_prompts", predict)
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention"))
    found = measure_leaks(model, adapters, "a photo of {}", "zorp fox", ["fox", "photo", "red", "blue"])
    assert (found[0].word, found[0].in_captions) == ("red", True) and found[0].share == pytest.approx(0.75)
    assert found[-1].word == "blue" and found[-1].share == pytest.approx(-0.5)
    assert [one.word for one in found if one.leaks] == ["red"]
    assert "photo" not in {one.word for one in found}, "it is in every prompt"
    assert {one.word for one in found if not one.in_captions} <= set(model.info.things)


def test_an_untrained_adapter_has_no_leaks(model):
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention"))
    assert not any(one.leaks for one in measure_leaks(model, adapters, "a {}", "rex fox", ["fox"]))
