"""The average of snapshots: parameter by parameter, and refused where it would mean nothing."""

from __future__ import annotations

import pytest
import torch

from atelier.adapters.core.base import BaseStatistics, Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.measures.averaging import average_adapters

SPEC = Spec("unet.layer", (3, 4))


def snapshot(seed: int, kind: str = "lora"):
    adapters = create_adapters(kind, {"rank": 2} if kind == "lora" else {}, [SPEC])
    torch.manual_seed(seed)
    for adapter in adapters:
        adapter.initialize(BaseStatistics(torch.randn(3, 4)))
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    return adapters


def test_every_parameter_is_the_mean():
    first, second, third = (snapshot(seed) for seed in range(3))
    average = average_adapters([first, second, third])
    for mean, *values in zip(*(one.parameters() for one in (average, first, second, third)), strict=True):
        torch.testing.assert_close(mean, sum(values) / 3)
    assert all(not torch.equal(a, b) for a, b in zip(average.parameters(), third.parameters(), strict=True))


def test_one_alone_is_itself():
    one = snapshot(0)
    average = average_adapters([one])
    assert all(torch.equal(value, average.tensors()[key]) for key, value in one.tensors().items())


def test_steps_that_train_other_values_have_no_average():
    first, second = snapshot(0, "shira"), snapshot(0, "shira")
    for buffer in second.buffers():
        buffer.copy_(buffer.flip(0))
    with pytest.raises(SettingError, match="changed between them"):
        average_adapters([first, second])
    with pytest.raises(SettingError, match="no saved steps"):
        average_adapters([])
