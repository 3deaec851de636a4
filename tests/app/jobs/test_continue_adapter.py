"""A run that continues an adapter of the library: what the adapter decides, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.jobs.jobs import new_run
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.library import adapter_hash, continued_from, delete_adapter, find_adapter
from atelier.training.config.train_config import TrainConfig


@pytest.fixture
def home(own_home: Path) -> Home:
    home = open_home(own_home)
    add(home, "rex", "lora", **{"atelier.trigger": "zrx", "atelier.subject": "dog"})
    return home


def add(home: Home, name: str, kind: str, family: str = "embedded", **entries: str) -> None:
    adapters = create_adapters(kind, {"rank": 3}, [Spec("unet.a", (8, 6))])
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    save_adapter(home.adapters / f"{name}.safetensors", adapters, {"atelier.family": family, **entries})


def test_the_adapter_decides_kind_options_and_words_and_is_named_by_its_hash(home: Home) -> None:
    rex = find_adapter(home, "rex")
    for given in ("rex", adapter_hash(rex)):
        run = new_run(home, TrainConfig(name="max", kind="dora", continue_from=given))
        config = run.config()
        assert (config.kind, config.adapter["rank"], config.trigger, config.subject) == ("lora", 3, "zrx", "dog")
        assert config.continue_from == adapter_hash(rex)
        assert run.start_adapter.read_bytes() == rex.path.read_bytes()
        run.path.rename(home.path / f"over-{given[:3]}")
    run = new_run(home, TrainConfig(name="max", continue_from="rex", trigger="own", subject="wolf"))
    assert (run.config().trigger, run.config().subject) == ("own", "wolf")
    assert not new_run(home, TrainConfig(name="new")).start_adapter.exists()


def test_parent_and_children_find_each_other(home: Home) -> None:
    rex = find_adapter(home, "rex")
    add(home, "max", "lora", **{"atelier.parent": adapter_hash(rex)})
    add(home, "ben", "lora")
    assert [card.name for card in continued_from(home, rex)] == ["max"]
    assert find_adapter(home, "max").parent == rex.hash and not continued_from(home, find_adapter(home, "max"))


def test_what_can_not_be_continued_is_said_and_no_run_is_left(home: Home) -> None:
    add(home, "far", "lora", "sd1")
    hash = adapter_hash(find_adapter(home, "rex"))
    delete_adapter(home, "rex")
    for given, reason in (("gone", "no adapter named 'gone'"), (hash, "is not in your library"),
                          ("far", "far was made for Stable Diffusion 1")):   # fmt: skip
        with pytest.raises(HomeError, match=reason):
            new_run(home, TrainConfig(name="max", continue_from=given))
    assert list(home.runs.iterdir()) == []
