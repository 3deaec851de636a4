"""The optimizer's state on disk: the same bits back for every optimizer, and nothing in it that could run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.optimizer_state import read_optimizer, write_optimizer
from atelier.training.loop.optimizers import make_optimizer


def same(one: Any, other: Any) -> bool:
    """Equal in type, keys, order and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def test_every_kind_of_value_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": shared, "view": shared[2:], "empty": torch.zeros(0, 3)},
                  1: {"half": torch.ones(2, dtype=torch.bfloat16), "codes": torch.ones(3, dtype=torch.uint8)}, "a": {}},
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "eps": 1e-300, "best": math.inf, "d": math.nan,
                          "flag": True, "count": 2**63, "name": "é {\"tensor\": \"0\"}", "none": None, "params": [0, 1],
                          "nested": [[], (), ((1,),)]}],
        "tensor": {"tensor": "7"}, "list": {"table": []},
    }   # fmt: skip
    write_optimizer(tmp_path, state)
    assert same(read_optimizer(tmp_path), state)
    assert {path.name for path in tmp_path.iterdir()} == {"optimizer.safetensors", "optimizer.json"}


@pytest.mark.parametrize("name", ["adamw", "prodigy", "galore", "galore-8bit", "lisa"])
def test_an_optimizer_goes_on_as_if_nothing_had_been(tmp_path: Path, name: str) -> None:
    config = TrainConfig(name="x", pictures="x", subject="x", optimizer=name, lr=0.1)

    def trained(resume: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        adapters = create_adapters("lora", {}, [Spec("a", (8, 6))])
        optimizer = make_optimizer(config, adapters)
        for step in range(5):
            if resume and step == 2:
                write_optimizer(tmp_path, optimizer.state_dict())
                optimizer = make_optimizer(config, adapters)
                optimizer.load_state_dict(read_optimizer(tmp_path))
            (adapters["a"].delta(torch.zeros(8, 6)) - step).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return {key: value.detach() for key, value in adapters.tensors().items()}

    assert same(trained(resume=True), trained(resume=False))


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), 1j, torch.Size, print])
def test_what_would_need_a_pickle_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="can't be saved"):
        write_optimizer(tmp_path, {"a": [value]})


@pytest.mark.parametrize("rest", ["{", '{"list": 1}', "[1]", '{"tensor": "9"}', '{"table": [1]}', '{"evil": 1}'])
def test_a_damaged_state_is_an_error(tmp_path: Path, rest: str) -> None:
    write_optimizer(tmp_path, {"a": 1})
    (tmp_path / "optimizer.json").write_text(rest)
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_optimizer(tmp_path)


def test_a_state_of_version_0_1_is_read_without_running_it(tmp_path: Path) -> None:
    state = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    torch.save(state, tmp_path / "optimizer.pt")
    assert same(read_optimizer(tmp_path), state)
    torch.save({"a": Evil(tmp_path / "ran")}, tmp_path / "optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read_optimizer(tmp_path)
    assert not (tmp_path / "ran").exists()


class Evil:
    """What a hostile pickle does: call anything when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)
