"""A training that continues another one's begins with its weights, and nothing else fits in their place."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atelier.adapters.attach.mount import MountError
from atelier.adapters.core.base import Spec
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import data_hash, load_adapter, read_header, save_adapter
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.config.events import Failed, Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs.run import run
from atelier.training.runs.start_adapter import load_start_adapter

CONFIG = TrainConfig(name="rex", lr=1e-4, steps=1, batch=1, warmup=0, prior_weight=0.0, validate_every=0,
                     preview_every=0, checkpoint_every=0, precision="fp32", adapter={"rank": 8})   # fmt: skip


@pytest.fixture
def start(model, tmp_path: Path) -> Path:
    """An adapter of rank 3 that does something, with other layers than a training has by default."""
    adapters = create_adapters("lora", {"rank": 3}, find_targets({"unet": model.unet}, "attention")[:2])
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    save_adapter(tmp_path / "start.safetensors", adapters, {})
    return tmp_path / "start.safetensors"


def test_a_run_begins_with_the_weights_and_says_whose(start: Path, tmp_path: Path, base: Path, pictures: Path) -> None:
    config = replace(CONFIG, base=str(base), pictures=str(pictures), continue_from=data_hash(start))
    folder = RunFolder.create(tmp_path / "run", config)
    shutil.copyfile(start, folder.start_adapter)
    (tmp_path / "adapters").mkdir()
    end = list(run(folder, tmp_path / "adapters"))[-1]
    assert isinstance(end, Finished), end
    before, after = load_adapter(start).tensors(), load_adapter(Path(end.path)).tensors()
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)
    assert any(not torch.equal(before[name], after[name]) for name in before), "and it was trained"
    info = read_header(Path(end.path)).info
    assert info.parent == data_hash(start) and f'continue_from = "{info.parent}"' in info.recipe


def test_a_start_that_is_missing_or_another_is_said(start: Path, tmp_path: Path, base: Path, pictures: Path) -> None:
    config = replace(CONFIG, base=str(base), pictures=str(pictures), continue_from="0" * 64)
    folder = RunFolder.create(tmp_path / "run", config)
    (tmp_path / "adapters").mkdir()
    end = list(run(folder, tmp_path / "adapters"))[-1]
    assert isinstance(end, Failed) and "start.safetensors does not exist" in end.message
    shutil.copyfile(start, folder.start_adapter)
    end = list(run(folder, tmp_path / "adapters"))[-1]
    assert isinstance(end, Failed) and "the recipe continues from 000000000000" in end.message


def test_what_does_not_fit_the_base_model_is_refused(model, tmp_path: Path) -> None:
    for layer, error in (("unet.nowhere", MountError), ("text_encoder.a", FileError)):
        path = tmp_path / "far.safetensors"
        save_adapter(path, create_adapters("lora", {"rank": 2}, [Spec(layer, (3, 4))]), {})
        with pytest.raises(error):
            load_start_adapter(path, replace(CONFIG, continue_from=data_hash(path)), model)
