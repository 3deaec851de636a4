"""Runs on a device with memory of its own (``pretend_device.py``): that they finish, and what a step waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_findings import STEP_WAITS
from pretend_device import Pretended, pretend_device
from safetensors.torch import load_file

from atelier.training.base_models.base_model import load
from atelier.training.compression.compress import make_student, write_compressed
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Event, Finished, Previewed, Stepped, Stopped, Validated
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.measures.trigger_word import word_effects
from atelier.training.runs import run as run_module
from atelier.training.sampling.sample import DrawRequest, draw

RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "bf16": {"precision": "bf16"},
    "text encoder": {"train_text_encoder": True},
    "8 bits and checkpointing": {"base_in_8_bits": True, "gradient_checkpointing": True, "ema": 0.9},
    "preview and validation": {"preview_every": 2, "validate_every": 1, "prior_weight": 1.0, "prior_count": 2},
    "split": {"kind": "split", "adapter": {"role": "style"}},
    "dora": {"kind": "dora"},
    "tlora": {"kind": "tlora", "adapter": {}},
    "start from the inputs": {"adapter": {"rank": 2, "start": "inputs"}},
    "start from the gradient": {"adapter": {"rank": 2, "start": "gradient"}},
    "whole gradient": {"whole_gradient": True},
    "prodigy": {"optimizer": "prodigy", "lr": 1.0},
}


@pytest.fixture
def device() -> Iterator[Pretended]:
    with pretend_device() as one:
        yield one


@pytest.fixture
def config(base: Path, pictures: Path) -> TrainConfig:
    return TrainConfig(
        name="rex", subject="fox", pictures=str(pictures), base=str(base), steps=3, batch=1, prior_weight=0.0,
        lr=0.05, warmup=0, validate_every=0, preview_every=0, checkpoint_every=0, precision="fp32", targets="attention",
        adapter={"rank": 2}, snapshots=0,
    )   # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "tlora")) for name in RUNS])
def test_a_run_finishes_and_a_step_waits_once(name: str, config: TrainConfig, device: Pretended, tmp_path: Path):
    run = RunFolder.create(tmp_path / "run", replace(config, **{"adapter": {}} | RUNS[name]))
    waits, events = waits_of_a_step(run, tmp_path, device)
    assert isinstance(events[-1], Finished), events[-1]
    kinds = {type(event) for event in events}
    assert kinds >= {Stepped} | ({Validated, Previewed} if "preview" in name else set())
    if "preview" not in name:   # else those are between the steps
        assert sum(waits.values()) == STEP_WAITS[name], waits


def waits_of_a_step(
    run: RunFolder, folder: Path, device: Pretended, *, resume: bool = False
) -> tuple[Counter[str], list[Event]]:
    """How often the second step waits for the device, and where; all events of the run."""
    waits, events, steps = Counter[str](), list[Event](), 0
    for event in run_module.run(run, folder / "adapters", resume=resume):
        events.append(event)
        if isinstance(event, Stepped):
            steps += 1
            if steps == 2:
                waits = Counter(device.waits)   # since the step before
            device.forget()
    return waits, events


def test_a_run_there_is_the_run_on_the_cpu(config: TrainConfig, tmp_path: Path):
    near = list(run_module.run(RunFolder.create(tmp_path / "near", config), tmp_path / "adapters"))[-1]
    with pretend_device():
        far = list(run_module.run(RunFolder.create(tmp_path / "far", config), tmp_path / "adapters"))[-1]
    assert isinstance(near, Finished) and isinstance(far, Finished)
    one, other = load_file(near.path), load_file(far.path)
    assert all(one[name].sub(other[name]).abs().max() < 1e-4 for name in one)


def test_a_run_is_resumed_there(config: TrainConfig, device: Pretended, tmp_path: Path):
    run = RunFolder.create(tmp_path / "run", replace(config, steps=4, checkpoint_every=1))
    events = run_module.run(run, tmp_path / "adapters")
    next(event for event in events if isinstance(event, Stepped) and event.step == 2)
    run.send_command("cancel")
    assert isinstance(list(events)[-1], Stopped)
    waits, steps = waits_of_a_step(run, tmp_path, device, resume=True)
    assert isinstance(steps[-1], Finished)
    assert [event.step for event in steps if isinstance(event, Stepped)] == [3, 4]
    assert sum(waits.values()) == STEP_WAITS["resumed"], waits


@pytest.mark.slow
def test_a_run_on_a_compressed_base_finishes(
    base: Path, config: TrainConfig, device: Pretended, tmp_path: Path
):
    model = load(str(base), "cpu")
    compression = CompressConfig(preset="w4a8", steps=3, timesteps=3, rank=2, pictures=1)
    make_student(model, compression)
    write_compressed(model, compression, tmp_path / "compressed")
    far, near = (load(str(tmp_path / "compressed"), place, torch.float32) for place in ("npu", "cpu"))
    drawn_waits = []
    for steps in (4, 2):
        device.forget()
        there = draw(far, DrawRequest(prompt="a fox", steps=steps))[0]
        drawn_waits.append(sum(device.waits.values()))
    assert drawn_waits[0] == drawn_waits[1]   # none in a step
    here = draw(near, DrawRequest(prompt="a fox", steps=2))[0]
    assert np.abs(np.asarray(there, dtype=int) - np.asarray(here, dtype=int)).max() <= 2
    run = RunFolder.create(tmp_path / "run", replace(config, base=str(tmp_path / "compressed")))
    waits, events = waits_of_a_step(run, tmp_path, device)
    assert isinstance(events[-1], Finished), events[-1]
    assert sum(waits.values()) == STEP_WAITS["on a compressed base"], waits


def test_nothing_of_the_base_but_the_unet_is_there_in_a_step(config: TrainConfig, device: Pretended, tmp_path: Path):
    free = device.free
    events = run_module.run(RunFolder.create(tmp_path / "run", config), tmp_path / "adapters")
    next(event for event in events if isinstance(event, Stepped))
    unet = load(config.base, "cpu").unet
    weights = sum(tensor.nbytes for tensor in (*unet.parameters(), *unet.buffers()))
    assert weights <= free - device.free < 1.3 * weights   # and the adapter with its optimizer


def test_words_are_measured_while_the_text_encoder_waits_elsewhere(base: Path, device: Pretended):
    """The first thing that a training of the embedded base does, once its parts are where they wait."""
    model = load(str(base), "npu", torch.float32)
    model.offload(model.vae, *model.text_encoders)
    there, here = (word_effects(one, ["house"])[0] for one in (model, load(str(base), "cpu")))
    assert there == pytest.approx(here, rel=1e-3)
    assert {encoder.device.type for encoder in model.text_encoders} == {"cpu"}
