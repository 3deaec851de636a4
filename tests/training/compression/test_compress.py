"""A compression from recipe to folder, as its process does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from atelier.adapters.attach.merge import merge
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.formats.safetensors_header import read_metadata
from atelier.adapters.quantization.fake_quant_layers import cache_quantized_weights
from atelier.adapters.quantization.packed import packed_layers
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.identify import identify
from atelier.training.compression.compress import RESULT, make_student, planned_bytes, write_compressed
from atelier.training.config.compress_config import CompressConfig, read_compression
from atelier.training.config.events import Event, Failed, Finished, Paused, Resumed, Saved, Stepped, Validated
from atelier.training.config.run_folder import RunFolder, status
from atelier.training.runs.run import run
from atelier.training.sampling.sample import DrawRequest, draw

TINY: dict[str, Any] = {"timesteps": 3, "rank": 2, "pictures": 1}


@pytest.fixture
def start(tmp_path: Path, base: Path) -> Callable[..., RunFolder]:
    def make(name: str = "small", **values: Any) -> RunFolder:
        config = CompressConfig(name=name, base=str(base), **{**TINY, "steps": 6, "preset": "w4a8", **values})
        return RunFolder.create(tmp_path / "runs" / name, config)

    return make


def carry_out(folder: RunFolder, *, resume: bool = False) -> list[Event]:
    return list(run(folder, folder.path.parent / "adapters", resume=resume))


def test_from_recipe_to_a_base_model_that_draws(start: Callable[..., RunFolder], base: Path):
    folder = start()
    events = carry_out(folder)
    assert isinstance(events[-1], Finished), events[-1]
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 7))
    assert [event.step for event in events if isinstance(event, Validated)] == [0, 3, 6]
    info = identify(events[-1].path)
    assert (info.family, info.precision) == ("embedded", "w4a8")
    model = load(events[-1].path, "cpu")
    assert not model.mergeable
    pictures = [draw(each, DrawRequest(seed=3, steps=3))[0] for each in (model, load(str(base), "cpu"))]
    assert pictures[0].size == pictures[1].size
    state = status(folder)
    assert (state.state, state.compression, state.step, state.total_steps) == ("done", True, 6, 6)


def test_the_report_tells_what_changed(start: Callable[..., RunFolder]):
    folder = start(prompts="a red hat\na blue cup")
    carry_out(folder)
    report = json.loads((folder.path / "report.json").read_text())
    assert [pair["prompt"] for pair in report["pairs"][:2]] == ["a red hat", "a blue cup"]
    for pair in report["pairs"]:
        with Image.open(folder.path / pair["before"]) as before, Image.open(folder.path / pair["after"]) as after:
            assert before.size == after.size == (32, 32)
    (file,) = (folder.path / RESULT / "unet").glob("*.safetensors")
    assert report["bytes_after"] == file.stat().st_size
    assert len(report["by_timestep"]["before"]) == len(report["by_timestep"]["after"]) == 3
    assert all(error >= 0 for _, error in report["by_layer"])
    assert report["seconds_after"] > 0


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_a_run_that_was_ended_goes_on_as_if_it_had_not(start: Callable[..., RunFolder], step: int):
    """Killed after the checkpoint between two trajectories, and in a pause within the second."""
    whole, cut = start("whole", steps=9), start("cut", steps=9)
    carry_out(whole)
    for event in (events := run(cut, cut.path / "adapters")):
        if isinstance(event, Stepped) and event.step == step == 5:
            cut.send_command("pause")
        if isinstance(event, Paused) or (isinstance(event, Saved) and event.step == step == 3):
            break
    events.close()   # type: ignore[attr-defined]
    again = carry_out(cut, resume=True)
    assert any(isinstance(event, Resumed) and event.step == step for event in again)
    one, other = (next((folder.path / RESULT / "unet").glob("*.safetensors")) for folder in (whole, cut))
    assert read_metadata(one) == read_metadata(other)
    values, others = load_file(one), load_file(other)
    assert values.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in values.items())


def test_cancelling_and_stopping(start: Callable[..., RunFolder]):
    folder = start("cancelled")
    for event in run(folder, folder.path / "adapters"):
        if isinstance(event, Stepped) and event.step == 2:
            folder.send_command("cancel")
    assert status(folder).state == "stopped"
    assert not (folder.path / RESULT).exists()
    folder = start("paused first")
    for event in run(folder, folder.path / "adapters"):
        if isinstance(event, Stepped) and event.step == 2:
            folder.send_command("pause")
        if isinstance(event, Paused):
            folder.send_command("cancel")
    assert (status(folder).state, status(folder).step) == ("stopped", 2)
    folder = start("stopped", steps=30)
    for event in run(folder, folder.path / "adapters"):
        if isinstance(event, Stepped) and event.step == 2:
            folder.send_command("stop")
    assert status(folder).state == "done"
    assert status(folder).step == 3   # to the end of a trajectory


def test_adapters_go_into_the_weights_first(
    start: Callable[..., RunFolder], base: Path, tmp_path: Path, trained: Callable[..., AdapterSet]
):
    """In 8 bits the compressed model stays near the customised one, and far from the bare base."""
    bare = load(str(base), "cpu")
    adapters = trained(bare)
    save_adapter(tmp_path / "fox.safetensors", adapters, {})
    folder = start(preset="w8", steps=0, adapters={str(tmp_path / "fox.safetensors"): 0.5})
    assert isinstance(carry_out(folder)[-1], Finished)
    compressed = load(str(folder.path / RESULT), "cpu")
    answers = {"compressed": _answer(compressed), "bare": _answer(bare)}
    with merge(bare.models(), Mix(((adapters, 0.5),))):
        answers["customised"] = _answer(bare)
    near, far = (torch.dist(answers["compressed"], answers[name]) for name in ("customised", "bare"))
    assert near < 0.05 * far


@torch.no_grad()
def _answer(model: BaseModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, features = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 192, generator=generator)
    return model.unet(noisy, torch.tensor([900, 100]), features, return_dict=False)[0]


@pytest.mark.parametrize("preset", ["w8a8", "w4a4", "w2a8", "w4"])
def test_the_file_is_the_model_that_learned(base: Path, tmp_path: Path, preset: str):
    """Codes and step sizes alone give back what the low-rank pairs and float weights computed."""
    model = load(str(base), "cpu")
    config = CompressConfig(preset=preset, steps=3, **TINY)
    student = make_student(model, config)
    with torch.no_grad():
        for name, parameter in model.unet.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.02)
    write_compressed(model, config, tmp_path / "out")
    with cache_quantized_weights(model.unet):
        ours = _answer(model)
    assert student.switch.on
    theirs = _answer(load(str(tmp_path / "out"), "cpu"))
    assert torch.dist(ours, theirs) / ours.norm() < 1e-5


def test_a_compressed_base_is_not_compressed_again(start: Callable[..., RunFolder]):
    first = start(steps=0)
    carry_out(first)
    config = CompressConfig(name="again", base=str(first.path / RESULT), steps=0, **TINY)
    again = RunFolder.create(first.path.parent / "again", config)
    (*_, last) = carry_out(again)
    assert isinstance(last, Failed)
    assert "already compressed" in last.message


def test_a_damaged_file_is_an_error_with_a_name(start: Callable[..., RunFolder], base: Path):
    folder = start(steps=0)
    carry_out(folder)
    out = folder.path / RESULT
    config = json.loads((out / "unet" / "config.json").read_text())
    (out / "unet" / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    with pytest.raises(ValueError, match="does not match its configuration"):
        load(str(out), "cpu")


def test_mixed_bits_help_and_cost_what_was_allowed(base: Path):
    plans = {}
    for share in (0.0, 0.3):
        model = load(str(base), "cpu")
        student = make_student(model, CompressConfig(preset="w2a8", steps=0, mixed=share, **TINY))
        plans[share] = student.plan
        raised = [name for name, bits in student.plan.items() if bits.weight == 8]
        held = sum(model.unet.get_submodule(name).weight.numel() for name in raised)
        ends = 4
        if not share:
            assert len(raised) == ends
        else:
            assert len(raised) > ends
            total = sum(model.unet.get_submodule(name).weight.numel() for name in student.plan)
            own = sum(model.unet.get_submodule(name).weight.numel() for name in raised if plans[0.0][name].weight == 8)
            assert held - own <= share * total


def test_the_plan_says_the_size_beforehand(start: Callable[..., RunFolder], base: Path):
    model = load(str(base), "cpu")
    whole, packed = planned_bytes(model.unet, "w4a8")
    assert whole == 2 * sum(parameter.numel() for parameter in model.unet.parameters())
    folder = start(steps=0)
    carry_out(folder)
    (file,) = (folder.path / RESULT / "unet").glob("*.safetensors")
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    table = 3 * 5 * len(packed_layers(load(str(folder.path / RESULT), "cpu").unet))   # input levels
    assert file.stat().st_size - header == pytest.approx(packed + table, rel=1e-3)


def test_recipes_of_both_jobs_are_told_apart(start: Callable[..., RunFolder]):
    folder = start()
    assert folder.compression() == read_compression((folder.path / "recipe.toml").read_text())
    assert folder.compression() is not None
    with pytest.raises(ValueError, match="job"):
        folder.config()
