"""Drawings in one batch are the drawings one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel
from atelier.training.sampling.draw_batch import Drawing, draw_batch
from atelier.training.sampling.sample import DrawRequest, draw


def taught(model: BaseModel, seed: int, rank: int, components: tuple[str, ...] = ("unet",)) -> AdapterSet:
    models = {name: part for name, part in model.models().items() if name in components}
    torch.manual_seed(seed)
    made = create_adapters("lora", {"rank": rank}, find_targets(models, "all"))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.15)
    return made


def test_pictures_of_a_batch_are_those_drawn_alone(model: BaseModel):
    """Different prompts and lengths, counts, seeds, ranks; an adapter of the text encoder too."""
    drawings = [
        Drawing(DrawRequest(prompt="a red fox", steps=3, seed=4, count=2), Mix(((taught(model, 1, 2), 1.0),))),
        Drawing(DrawRequest(prompt="a house", negative="blue", steps=3, seed=9)),
        Drawing(DrawRequest(prompt="a fox " * 40, steps=3, seed=2),
                Mix(((taught(model, 2, 4, ("unet", "text_encoder")), 0.7),))),
    ]   # fmt: skip
    found = draw_batch(model, drawings)
    assert [len(pictures) for pictures in found] == [2, 1, 1]
    plain = draw(model, drawings[0].request)
    for pictures, drawing in zip(found, drawings, strict=True):
        for one, other in zip(pictures, draw(model, drawing.request, drawing.mix), strict=True):
            assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
    assert np.abs(np.asarray(found[0][0], dtype=int) - np.asarray(plain[0], dtype=int)).max() > 20


def test_steps_are_counted(model: BaseModel):
    seen: list[tuple[int, int]] = []
    draw_batch(model, [Drawing(DrawRequest(steps=3)), Drawing(DrawRequest(steps=3, seed=1))],
               lambda done, of: seen.append((done, of)))   # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    draw_batch(model, [Drawing(DrawRequest(steps=2)), Drawing(DrawRequest(prompt="a fox " * 40, steps=2))],
               lambda done, of: seen.append((done, of)))   # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]   # prompts of two lengths are two batches


@pytest.mark.parametrize("change", [{"steps": 4}, {"guidance": 5.0}, {"sampler": "euler"}, {"width": 64}])
def test_what_a_batch_must_share_is_named(model: BaseModel, change: dict[str, object]):
    plain = DrawRequest(steps=3)
    other = DrawRequest.from_dict({**plain.to_dict(), **change})
    with pytest.raises(SettingError, match=f"{next(iter(change))} is .* one after the other"):
        draw_batch(model, [Drawing(plain), Drawing(other)])
    with pytest.raises(SettingError, match="two passes"):
        draw_batch(model, [Drawing(DrawRequest(upscale=2.0))])
