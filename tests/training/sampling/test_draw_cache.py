"""What is kept from one drawing to the next must never show: the same pictures as without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import write_configurations, write_models

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.fusion.live import Fusion, WeightedAdapter
from atelier.training.base_models import single_file
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.sampling import draw_cache as module
from atelier.training.sampling.draw_cache import DrawCache, encode_prompts
from atelier.training.sampling.sample import DrawRequest, draw

ASK = DrawRequest(prompt="a red fox", negative="blue", steps=2, seed=11)
Trained = Callable[..., AdapterSet]


@pytest.fixture
def readings(model: BaseModel):
    """How many texts the text encoder has read so far."""
    count: list[int] = []
    hook = model.text_encoder.register_forward_hook(lambda *_: count.append(1))
    yield count
    hook.remove()


def but(**changes) -> DrawRequest:
    return DrawRequest.from_dict({**ASK.to_dict(), **changes})


def test_a_prompt_is_read_once(model, readings):
    cache = DrawCache()
    first = draw(model, ASK, cache=cache)[0].tobytes()
    assert len(readings) == 3   # prompt, negative, unwanted
    assert draw(model, but(seed=11), cache=cache)[0].tobytes() == first
    draw(model, but(prompt="a house", seed=3), cache=cache)
    assert len(readings) == 4
    house = but(prompt="a house")
    assert draw(model, house, cache=cache)[0].tobytes() == draw(model, house)[0].tobytes()


@pytest.mark.parametrize("change", [{"unwanted": "a house"}, {"negative": "a house"}, {"negative": ""}])
def test_every_text_counts_although_others_are_kept(model, change):
    cache = DrawCache()
    draw(model, ASK, cache=cache)
    draw(model, but(prompt="a house", negative="a red fox"), cache=cache)
    assert draw(model, but(**change), cache=cache)[0].tobytes() == draw(model, but(**change))[0].tobytes()


def mixes(adapters: AdapterSet) -> list[Mix | Fusion]:
    return [Mix(((adapters, 1.0),)), Fusion((WeightedAdapter(adapters, 1.0),))]


@pytest.mark.parametrize("way", ["merged or mounted", "fused"])
def test_an_adapter_of_the_text_encoder_reads_anew_and_leaves_nothing(model, trained: Trained, readings, way):
    which = ["merged or mounted", "fused"].index(way)
    adapters, cache = trained(model, ("unet", "text_encoder")), DrawCache()
    plain = draw(model, ASK, cache=cache)[0].tobytes()
    expected = draw(model, ASK, mixes(adapters)[which])[0].tobytes()
    before = len(readings)
    assert draw(model, ASK, mixes(adapters)[which], cache=cache)[0].tobytes() == expected != plain
    assert len(readings) == before + 3
    assert draw(model, ASK, cache=cache)[0].tobytes() == plain
    assert len(readings) == before + 3


def test_an_adapter_of_the_unet_alone_or_at_zero_reads_nothing_anew(model, trained: Trained, readings):
    unet, texts, cache = trained(model), trained(model, ("text_encoder",)), DrawCache()
    draw(model, ASK, cache=cache)
    for adapters, strength in ((unet, 1.0), (texts, 0.0)):
        for mix in (Mix(((adapters, strength),)), Fusion((WeightedAdapter(adapters, strength),))):
            drawn = draw(model, ASK, mix, cache=cache)[0].tobytes()
            assert len(readings) == 3
            assert drawn == draw(model, ASK, mix)[0].tobytes()
            del readings[3:]


def test_what_was_not_asked_for_lately_goes(model, readings, monkeypatch):
    monkeypatch.setattr(module, "MAX_CACHED_PROMPTS", 2)
    cache = DrawCache()
    for text in ("a", "b", "a", "c", "a", "b"):
        cache.encode_prompts(model, [text])
    assert len(readings) == 4   # a, b, c, and b again


def test_the_second_encoder_s_pooled_words_are_kept_too(tmp_path, monkeypatch):
    configurations = write_configurations(tmp_path / "models", "sdxl")
    monkeypatch.setattr(single_file, "MODELS", configurations)
    folder, _ = write_models(tmp_path, "sdxl", configurations=configurations)
    model, cache = load(str(folder), "cpu"), DrawCache()
    with torch.inference_mode():
        cache.encode_prompts(model, ["a fox", ""])
        prompts = ["", "a fox"]
        for found, fresh in zip(cache.encode_prompts(model, prompts), encode_prompts(model, prompts), strict=True):
            assert found.pooled is not None and fresh.pooled is not None
            assert torch.equal(found.features, fresh.features)
            assert torch.equal(found.pooled, fresh.pooled)
