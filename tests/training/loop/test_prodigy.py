"""Our form of Prodigy, which waits for the device once a step, is the library's in every bit."""

from __future__ import annotations

from typing import Any

import prodigyopt
import torch
from pretend_device import pretend_device
from torch import nn

from atelier.training.loop.prodigy import Prodigy

OPTIONS: dict[str, Any] = {"lr": 1.0, "weight_decay": 0.01, "safeguard_warmup": True}


def parameters() -> list[nn.Parameter]:
    """As LoRAs have them: random ones and such that begin at zero."""
    generator = torch.Generator().manual_seed(2)
    return [nn.Parameter(torch.randn(4, 7, generator=generator)), nn.Parameter(torch.zeros(7, 3)),
            nn.Parameter(torch.randn(5, generator=generator))]   # fmt: skip


def train(optimizer: Any, mine: list[nn.Parameter], steps: int = 12) -> None:
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        for index, parameter in enumerate(mine):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if step == 3 and index == 2 else 0.1 * parameter.detach() + noise
        for group in optimizer.param_groups:
            group["lr"] = 1.0 - 0.05 * step   # a schedule
        optimizer.step()


def test_it_is_the_library_s_in_every_bit() -> None:
    ours, theirs = parameters(), parameters()
    one, other = Prodigy(ours, **OPTIONS), prodigyopt.Prodigy(theirs, **OPTIONS)
    train(one, ours)
    train(other, theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert one.param_groups[0]["d"] == other.param_groups[0]["d"] > 1e-6
    a, b = one.state_dict(), other.state_dict()
    assert a["param_groups"] == b["param_groups"]
    for index, state in b["state"].items():
        assert state.keys() == a["state"][index].keys()
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(a["state"][index][name]))
                   for name, value in state.items())   # fmt: skip


def test_without_gradients_nothing_happens() -> None:
    mine = parameters()
    before = [parameter.detach().clone() for parameter in mine]
    optimizer = Prodigy(mine, **OPTIONS)
    optimizer.step()
    for parameter in mine:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, mine, strict=True))
    assert optimizer.param_groups[0]["k"] == 0


def test_a_step_waits_once() -> None:
    with pretend_device() as device:
        mine = [nn.Parameter(parameter.detach().to("npu")) for parameter in parameters()]
        optimizer = Prodigy(mine, **OPTIONS)
        for _ in range(2):
            device.forget()
            for parameter in mine:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        assert sum(device.waits.values()) == 1
