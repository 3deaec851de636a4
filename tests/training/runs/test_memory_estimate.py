"""The memory a run is said to need: against what real processes took, and against arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import write_models
from PIL import Image
from torch import nn

from atelier.adapters.core.targets import find_targets
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs import memory_savings
from atelier.training.runs.memory_estimate import PROGRAM_BYTES, MemoryNeed, estimate_memory
from atelier.training.runs.memory_savings import available_memory, fit_to_memory, next_saving

SMALL = TrainConfig(batch=1, prior_count=0)


def test_weights_are_counted_to_the_byte(model):
    counted = estimate_memory(replace(SMALL, base=model.info.source), "fp32")
    tensors = [t for part in (*model.models().values(), model.vae) for t in part.state_dict().values()]
    buffers = [b for part in (*model.models().values(), model.vae) for _, b in part.named_buffers()]
    least = sum(t.numel() * t.element_size() for t in tensors)
    assert least <= counted.weights <= least + sum(b.numel() * b.element_size() for b in buffers) + 4096


def test_half_the_precision_takes_half_of_the_unet(model):
    fp32, bf16 = (estimate_memory(replace(SMALL, base=model.info.source), kind).weights for kind in ("fp32", "bf16"))
    halved = sum(p.numel() for part in model.models().values() for p in part.parameters()) * 2
    assert abs((fp32 - bf16) - halved) < 4096


def test_in_8_bits_the_layers_of_the_unet_take_a_quarter(model: BaseModel):
    config = replace(SMALL, base=model.info.source)
    whole, small = (estimate_memory(replace(config, base_in_8_bits=flag), "fp32") for flag in (False, True))
    layers = [layer for name, layer in model.unet.named_modules()
              if isinstance(layer, nn.Linear | nn.Conv2d) and name not in ("conv_in", "conv_out")]   # fmt: skip
    saved = sum(3 * layer.weight.numel() - 4 * len(layer.weight) for layer in layers)
    assert whole.weights - small.weights == saved
    assert (whole.quantize, small.quantize) == (0, saved)
    assert small.train < 1.05 * whole.train   # weights that are made in a step are let go again


@pytest.fixture
def tiny(model: BaseModel) -> TrainConfig:
    """A run on the smallest model there is, of which only the steps are counted: quickly done."""
    return replace(SMALL, base=model.info.source, preview_every=0, validate_every=0)


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(tiny: TrainConfig):
    one, four = (estimate_memory(replace(tiny, batch=batch), "fp32").train for batch in (1, 4))
    assert 2.5 < four / one < 4.25   # the adapter's own state does not grow
    saved = estimate_memory(replace(tiny, batch=4, gradient_checkpointing=True), "fp32").train
    assert saved < 0.7 * four


def test_a_larger_rank_costs_its_optimizer_state(model: BaseModel, tiny: TrainConfig):
    small, large = (estimate_memory(replace(tiny, adapter={"rank": rank}), "fp32").train for rank in (8, 256))
    specs = find_targets({"unet": model.unet}, "transformer")
    more = 248 * sum(spec.rows + spec.columns for spec in specs)
    # Weight, gradient and two moments in float32, less the activations, which are the peak of the small one alone.
    assert 15 * more < large - small < 28 * more


@pytest.mark.slow
def test_merging_into_fine_weights_counts_them_twice(model: BaseModel, tiny: TrainConfig):
    config = replace(tiny, targets="all", preview_every=1)
    fine, coarse = (estimate_memory(config, precision) for precision in ("fp16", "bf16"))
    small = estimate_memory(replace(config, base_in_8_bits=True), "fp16")
    targets = sum(spec.rows * spec.columns for spec in find_targets({"unet": model.unet}, "all")) * 2
    assert (fine.merged, coarse.merged, small.merged) == (targets, 0, 0)
    assert small.denoise < coarse.denoise + targets / 2   # one layer's weight at a time
    assert estimate_memory(config, "fp16", device="cuda").merged == 0   # previews mount on a card
    assert estimate_memory(replace(config, preview_every=0), "fp16").merged == 0


NEED = MemoryNeed(unet=70, text_encoders=20, vae=10, encode=5, train=20)


@pytest.mark.parametrize(
    ("changes", "peak"),
    [
        ({}, 120),                                    # a step, with all parts there
        ({"program": 7, "quantize": 30}, 137),        # loaded, and not yet in 8 bits
        ({"encode": 25}, 125),
        ({"state": 8, "validate": 15}, 123),          # adapter and optimizer stay while it validates
        ({"state": 8, "denoise": 5, "merged": 30}, 143),
        ({"state": 8, "decode": 40}, 148),
        ({"recorded": 12}, 132),                      # a step that is recorded keeps its activations
        ({"recorded": 12, "state": 8, "decode": 40}, 160),
    ],
)
def test_the_peak_is_the_hungriest_phase(changes: dict[str, int], peak: int):
    assert replace(NEED, **changes).peak == peak


@pytest.mark.parametrize(
    ("changes", "peak"),
    [
        ({"train": 25}, 95),                 # a step has neither text encoders nor VAE with it
        ({"train": 0}, 90),                  # prompts are read while the UNet is there
        ({"encode": 85}, 95),                # pictures are encoded by the VAE alone
        ({"state": 8, "denoise": 15}, 93),
        ({"state": 8, "decode": 15}, 103),
    ],
)
def test_what_is_offloaded_counts_only_while_it_works(changes: dict[str, int], peak: int):
    assert replace(NEED, offloaded=frozenset(("unet", "text_encoders", "vae")), **changes).peak == peak


def test_a_recorded_step_counts_only_where_steps_are_recorded(tiny: TrainConfig):
    on_card, on_cpu = (estimate_memory(tiny, "fp32", device=device) for device in ("cuda", "cpu"))
    assert on_card.recorded == on_card.train - on_card.state > 0 == on_cpu.recorded
    for changes in ({"record": "off"}, {"gradient_checkpointing": True}):
        assert estimate_memory(replace(tiny, **changes), "fp32", device="cuda").recorded == 0


def test_validation_looks_at_eight_timesteps_at_once(tiny: TrainConfig):
    need = estimate_memory(replace(tiny, resolution=128, preview_every=1, validate_every=1), "fp32")
    assert 3 < need.validate / need.denoise < 5   # a preview at two


def test_prior_pictures_are_counted_as_they_are_drawn_and_as_they_are_trained(tiny: TrainConfig):
    """Drawn in batches at the base's own size; trained at that of the run."""
    tiny = replace(tiny, preview_every=1, prior_weight=1.0)
    small, large = (replace(tiny, resolution=side, prior_count=1) for side in (32, 128))
    without = estimate_memory(replace(small, prior_count=0), "fp32")
    assert estimate_memory(small, "fp32").denoise > 3 * without.denoise
    assert estimate_memory(large, "fp32").train > 8 * estimate_memory(small, "fp32").train


def test_levers_come_in_order_and_end():
    config: TrainConfig | None = TrainConfig(batch=4)
    seen: list[tuple[bool, int, int, bool]] = []
    while config := next_saving(config):
        seen.append((config.gradient_checkpointing, config.batch, config.accumulate, config.base_in_8_bits))
    assert seen == [(True, 4, 1, False), (True, 2, 2, False), (True, 1, 4, False), (True, 1, 4, True)]


def test_on_an_nvidia_card_recording_goes_first():
    cuda, config = torch.device("cuda"), TrainConfig(batch=2)
    first = next_saving(config, cuda)
    assert first == replace(config, record="off")
    assert first is not None and next_saving(first, cuda) == replace(first, gradient_checkpointing=True)


def test_a_start_that_needs_the_whole_base_is_never_put_into_8_bits():
    config = TrainConfig(batch=1, gradient_checkpointing=True, adapter={"start": "gradient"})
    assert next_saving(config) is None
    assert next_saving(replace(config, adapter={})) is not None


def test_a_run_that_fits_is_left_alone(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_savings, "available_memory", lambda _: 10**12)
    assert fit_to_memory(tiny, "fp32", torch.device("cpu")) == (tiny, "")
    monkeypatch.setattr(memory_savings, "PER_MODEL", 10**9)   # counted all the same
    assert fit_to_memory(tiny, "fp32", torch.device("cpu")) == (tiny, "")


def test_levers_are_pulled_until_a_run_fits(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    config = replace(tiny, batch=8)
    sparing = replace(config, gradient_checkpointing=True, batch=4, accumulate=2)
    monkeypatch.setattr(memory_savings, "PER_MODEL", 10**9)
    monkeypatch.setattr(memory_savings, "available_memory", lambda _: estimate_memory(sparing, "fp32").peak + 1000)
    chosen, said = fit_to_memory(config, "fp32", torch.device("cpu"))
    assert chosen == sparing
    assert "recomputed" in said
    assert "the batch size is 4 instead of 8" in said


def test_a_run_that_fits_in_no_way_says_what_it_needs(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_savings, "PER_MODEL", 10**9)
    monkeypatch.setattr(memory_savings, "available_memory", lambda _: 100_000_000)
    with pytest.raises(BaseError, match=r"needs about [\d.]+ MB .* 100 MB is free"):
        fit_to_memory(replace(tiny, batch=2), "fp32", torch.device("cpu"))


def test_less_is_available_than_there_is():
    assert 0 < available_memory(torch.device("cpu")) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of Stable Diffusion 1.5's size in float32, its weights random."""
    place = tmp_path_factory.mktemp("full")
    folder, file = write_models(place, "sd1")
    file.unlink()
    yield folder


def measured(config: TrainConfig, place: Path) -> int:
    """The most memory that a process needed which carried out the run, in bytes."""
    run = RunFolder.create(place / "run", config)
    (place / "adapters").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "atelier.training.runs.run", str(run.path), "--adapters", str(place / "adapters")]
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status   # or Popen would complain that nobody waited for it
    assert status == 0
    assert isinstance(run.events()[-1][1], Finished)
    return used.ru_maxrss * 1024   # Linux counts in KiB


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "changes",
    [
        {"base": "embedded", "batch": 96},
        {"base": "embedded", "batch": 96, "gradient_checkpointing": True},
        {"base": "embedded", "batch": 32, "kind": "lokr", "targets": "all", "resolution": 96},
        {"resolution": 128},
        {"resolution": 256, "batch": 2},
        {"resolution": 256, "batch": 2, "gradient_checkpointing": True, "targets": "all"},
    ],
    ids=str,
)
def test_the_estimate_is_within_15_percent_of_what_a_process_takes(
    changes: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
):
    side = changes.get("resolution", 64)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{number}.png")
    base = changes.get("base") or str(request.getfixturevalue("full_size"))
    config = TrainConfig(**{
        "name": "rex", "pictures": str(tmp_path / "pictures"), "steps": 2, "batch": 1, "warmup": 0, "prior_count": 0,
        "precision": "fp32", "validate_every": 0, "preview_every": 0, "checkpoint_every": 0, **changes, "base": base,
    })   # fmt: skip
    counted = estimate_memory(config, "fp32")
    estimate = counted.peak
    took = measured(config, tmp_path)
    print(f"\n{changes}: estimated {estimate / 1e9:.2f} GB, measured {took / 1e9:.2f} GB, "
          f"ratio {estimate / took:.3f}")   # fmt: skip
    assert took > PROGRAM_BYTES
    assert abs(estimate / took - 1) < 0.15
