"""The time of a step: the least of three, for each picture of a batch, and real work in between."""

from __future__ import annotations

from itertools import chain

import pytest

from atelier.training.base_models.base_model import BaseModel
from atelier.training.measures.step_time import seconds_per_picture


def test_the_shortest_of_three_steps_counts(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    predict = type(model).predict
    monkeypatch.setattr(type(model), "predict", lambda self, noisy, *rest: (
        batches.append(len(noisy)), predict(self, noisy, *rest))[1])   # fmt: skip
    ticks = chain([0.0, 5.0, 5.0, 7.0, 10.0, 14.0])   # steps of 5, 2 and 4 seconds
    assert seconds_per_picture(model, 4, lambda: next(ticks)) == 0.5
    assert batches == [4, 4, 4]
    assert all(parameter.grad is None for parameter in model.unet.parameters())
