"""`atelier transfer`: which drawings another base model is trained on, and the whole way on the embedded one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.formats.native import save_adapter
from atelier.app.cli.main import main
from atelier.app.services.library.transfer import choose_drawings
from atelier.app.store.home import Home
from atelier.app.store.library import find_adapter
from atelier.training.base_models.base_model import load


def grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), value, np.uint8))


def test_drawings_are_kept_in_which_the_adapter_shows_and_which_are_alike():
    plain = [grey(100)] * 12
    # Two unchanged, one hardly; one far from the rest; two equal ones.
    drawn = [grey(value) for value in (100, 150, 151, 100, 152, 153, 101, 154, 250, 155, 156, 156)]
    assert choose_drawings(drawn, plain) == [1, 2, 4, 5, 7, 9, 10]


def test_an_adapter_that_changes_nothing_leaves_nothing_to_train_on():
    assert choose_drawings([grey(101)] * 4, [grey(100)] * 4) == []


def write_adapter(home: Home, size: float) -> None:
    """A random LoRA for attention of the embedded base."""
    torch.manual_seed(5)
    specs = find_targets({"unet": load("embedded", "cpu").unet}, "attention")
    pairs = {spec: (size * torch.randn(spec.rows, 2), torch.randn(2, spec.columns)) for spec in specs}
    home.adapters.mkdir(parents=True, exist_ok=True)
    save_adapter(home.adapters / "rex.safetensors", lora_from_factors(pairs), {
        "atelier.family": "embedded", "atelier.base": "embedded", "atelier.trigger": "rex", "atelier.subject": "fox",
    })   # fmt: skip


COMMAND = ("transfer rex --base embedded --name moved --count 4 --json --steps 1 --set prior_count=0 batch=1 rank=1 "
           "validate_every=0 preview_every=0 precision=fp32").split()


@pytest.mark.slow
def test_an_adapter_is_moved_without_its_pictures(home: Home, capsys: pytest.CaptureFixture[str]):
    write_adapter(home, 0.3)
    assert main(COMMAND) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["name"] == "moved" and "fits this base model as it is" in said.err
    card = find_adapter(home, "moved")
    assert (card.trigger, card.subject) == ("rex", "fox") and 1 <= card.pictures <= 3


@pytest.mark.slow
def test_an_adapter_that_can_not_be_seen_is_refused(home: Home, capsys: pytest.CaptureFixture[str]):
    write_adapter(home, 0.0)
    assert main(COMMAND) == 1
    assert "nothing to move" in capsys.readouterr().err
    assert not home.runs.exists() or not list(home.runs.iterdir())
