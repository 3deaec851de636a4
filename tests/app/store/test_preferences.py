"""What is chosen for a home stays, and what nobody can read is what it was before anybody chose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretend_device import pretend_device

from atelier.app.store.home import HomeError, open_home
from atelier.app.store.preferences import (
    drawing_device,
    drawing_precision,
    save_drawing_device,
    save_drawing_precision,
)
from atelier.training.base_models.device import device_named, usable_devices


def test_the_precision_of_drawings_stays_as_it_was_chosen(own_home: Path):
    home = open_home(own_home)
    assert drawing_precision(home) == "auto"
    save_drawing_precision(home, "bf16")
    assert drawing_precision(open_home(own_home)) == "bf16"


def test_the_device_of_drawings_is_one_of_this_machine_and_leaves_the_precision_alone(own_home: Path):
    home = open_home(own_home)
    assert drawing_device(home) == "auto" and "npu:0" not in usable_devices()
    save_drawing_precision(home, "bf16")
    with pretend_device():
        assert usable_devices() == ["auto", "npu:0", "cpu"]
        save_drawing_device(home, "npu:0")
        assert device_named(drawing_device(open_home(own_home))) == torch.device("npu:0")
        assert device_named("cpu") == torch.device("cpu")
        with pytest.raises(HomeError, match="'cuda:7' is not a device of this machine; use one of auto, npu:0, cpu"):
            save_drawing_device(home, "cuda:7")
    assert (drawing_device(home), drawing_precision(home)) == ("npu:0", "bf16")
    assert device_named("npu:0") == torch.device("cpu"), "the card is gone: the fastest that is left"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"drawing_precision": 3}', '{"drawing_precision": "fp8"}', "\x00"])
def test_what_can_not_be_read_is_as_if_nothing_was_chosen(own_home: Path, text: str):
    home = open_home(own_home)
    home.preferences.write_text(text)
    assert drawing_precision(home) == "auto"


def test_another_precision_is_refused(own_home: Path):
    with pytest.raises(HomeError, match="'fp8' is not a precision; use one of auto, fp32, bf16, fp16"):
        save_drawing_precision(open_home(own_home), "fp8")
