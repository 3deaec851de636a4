"""Parts that a step does not need wait elsewhere: where they are, when they come back, and what that changes."""

from __future__ import annotations

import copy
import errno
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from atelier.training.base_models import offload as rest_module
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.offload import CpuOffload, DiskOffload
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs import memory_estimate as memory
from atelier.training.runs import run as run_module
from atelier.training.runs.memory_estimate import estimate_memory
from atelier.training.sampling.sample import DrawRequest, draw

AWAY = torch.device("cuda", 7)   # a name for "elsewhere": nothing is really moved there
Moves = list[tuple[str, str]]


def watched(part: Any, name: str, moves: Moves) -> Any:
    """The same part, which remembers where it was sent to and refuses to work elsewhere."""

    class Watched(type(part)):
        place = torch.device("cpu")

        @property
        def device(self) -> torch.device:
            return self.place

        def to(self, device: torch.device) -> Any:
            assert not torch.is_inference_mode_enabled()
            self.place = device
            moves.append((name, "away" if device == AWAY else "here"))
            return self

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.at_work(super().forward, *args, **kwargs)

        def encode(self, *args: Any, **kwargs: Any) -> Any:
            return self.at_work(super().encode, *args, **kwargs)

        def decode(self, *args: Any, **kwargs: Any) -> Any:
            return self.at_work(super().decode, *args, **kwargs)

        def at_work(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            assert self.place != AWAY, f"{name} was asked to work while it was put aside"
            return work(*args, **kwargs)

    part = copy.deepcopy(part)
    part.__class__ = Watched
    return part


@pytest.fixture
def moves() -> Moves:
    return []


@pytest.fixture
def movable(model: BaseModel, moves: Moves) -> BaseModel:
    """The tiny base model as it is on a GPU: its parts can wait elsewhere."""
    parts = {name: watched(getattr(model, name), name, moves) for name in ("vae", "text_encoder")}
    return replace(model, **parts, offload_to=CpuOffload(AWAY))


def test_parts_are_put_aside_and_fetched(movable: BaseModel, moves: Moves):
    movable.offload(movable.vae, movable.text_encoder)
    assert moves == [("vae", "away"), ("text_encoder", "away")]
    with movable.on_device(movable.vae):
        assert moves[2:] == [("vae", "here")]
        with movable.on_device(movable.vae, movable.text_encoder):   # one is there already
            assert moves[3:] == [("text_encoder", "here")]
        assert moves[4:] == [("text_encoder", "away")]
    assert moves[5:] == [("vae", "away")]


def test_parts_go_back_after_an_error_too(movable: BaseModel, moves: Moves):
    movable.offload(movable.vae)
    with pytest.raises(KeyError), movable.on_device(movable.vae):
        raise KeyError
    assert moves[-1] == ("vae", "away")


def test_where_nothing_is_gained_nothing_moves(movable: BaseModel, moves: Moves):
    at_home = replace(movable, offload_to=None)
    at_home.offload(at_home.vae)
    with at_home.on_device(at_home.vae):
        pass
    assert moves == []


def test_on_a_cpu_parts_stay(base: Path):
    assert load(str(base), "cpu").offload_to is None


def held() -> int:
    """Bytes of this process in memory, as the kernel counts them."""
    return psutil.Process().memory_info().rss


@pytest.fixture
def large() -> nn.Sequential:
    """A part of 64 MB with shared weights, a buffer of another dtype and an empty one."""
    part = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16))).requires_grad_(False)
    part[1].weight = part[0].weight
    part.register_buffer("places", torch.arange(7)[None])
    part.register_buffer("nothing", torch.zeros(0))
    return part


def test_on_the_disk_a_part_takes_no_memory_and_stays_as_it_was(large: nn.Sequential, tmp_path: Path):
    before = {name: value.clone() for name, value in large.state_dict().items()}
    x = torch.randn(3, 1024)
    rest, answer, full = DiskOffload(tmp_path), large(x), held()
    rest.offload(large)
    assert rest.holds(large)
    if sys.platform == "linux":
        assert full - held() > 50e6
    assert torch.equal(large(x), answer)
    assert all(torch.equal(value, before[name]) for name, value in large.state_dict().items())
    assert large[1].weight is large[0].weight
    assert not list(tmp_path.iterdir())   # nothing to tidy up, however the process ends


def test_on_the_disk_a_part_that_was_changed_stays_changed(large: nn.Sequential, tmp_path: Path):
    rest = DiskOffload(tmp_path)
    rest.offload(large)
    weight = large.get_parameter("2.weight").fill_(3)
    rest.offload(large)
    assert bool(weight.eq(3).all())


def test_without_room_on_the_disk_a_part_stays(large: nn.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rest_module.tempfile, "TemporaryFile", lambda **_: Full())
    rest, x = DiskOffload(tmp_path), torch.randn(3, 1024)
    answer = large(x)
    rest.offload(large)
    assert not rest.holds(large)
    assert torch.equal(large(x), answer)


def test_a_small_part_is_not_worth_a_file(tmp_path: Path):
    rest, part = DiskOffload(tmp_path), nn.Linear(8, 8)
    place = part.weight.data_ptr()
    rest.offload(part)
    assert not rest.holds(part)
    assert part.weight.data_ptr() == place


def test_a_run_on_a_cpu_puts_large_parts_on_the_disk(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = TrainConfig(
        name="rex", subject="fox", pictures=str(pictures), base=str(base), steps=2, batch=2, prior_count=3, lr=0.05,
        warmup=0, validate_every=1, preview_every=2, checkpoint_every=0, precision="fp32", adapter={"rank": 2},
    )   # fmt: skip
    plain = list(run_module.run(RunFolder.create(tmp_path / "plain", config), tmp_path / "adapters"))[-1]
    taken: list[nn.Module] = []
    monkeypatch.setattr(rest_module, "MIN_OFFLOAD_BYTES", 0)
    really = DiskOffload.offload
    monkeypatch.setattr(DiskOffload, "offload", lambda self, part: (taken.append(part), really(self, part)))
    rested = list(run_module.run(RunFolder.create(tmp_path / "rested", config), tmp_path / "adapters"))[-1]
    assert isinstance(plain, Finished) and isinstance(rested, Finished), rested
    assert len(set(taken)) == 2 and len(taken) > 4   # VAE and text encoder, again after every use
    one, other = load_file(plain.path), load_file(rested.path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_keeps_only_the_unet_while_it_steps(
    base: Path, movable: BaseModel, moves: Moves, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = TrainConfig(
        name="rex", subject="fox", pictures=str(pictures), base=str(base), steps=2, batch=2, prior_count=3, lr=0.05,
        warmup=0, validate_every=1, preview_every=2, checkpoint_every=0, precision="fp32", adapter={"rank": 2},
    )   # fmt: skip
    plain = list(run_module.run(RunFolder.create(tmp_path / "plain", config), tmp_path / "adapters"))

    places: list[torch.device] = []
    hook = movable.unet.register_forward_pre_hook(
        lambda *_: places.append(movable.vae.place) if torch.is_grad_enabled() else None
    )
    monkeypatch.setattr(run_module, "load", lambda *_, **__: movable)
    events = list(run_module.run(RunFolder.create(tmp_path / "moved", config), tmp_path / "adapters"))
    hook.remove()
    assert isinstance(events[-1], Finished) and isinstance(plain[-1], Finished), events[-1]
    assert set(places) == {AWAY}
    # Away as soon as it is loaded; the VAE comes for the pictures, the previews at the start and the end and the cover,
    # the text encoder for the captions (prior pictures, one at a time), the previews and the cover. They are never
    # there together.
    assert [where for name, where in moves if name == "vae"] == ["away", *["here", "away"] * 4]
    assert [where for name, where in moves if name == "text_encoder"][:3] == ["away", "here", "away"]
    there = [name for name, where in moves if where == "here"]
    assert all(moves[moves.index((name, "here")) + 1] == (name, "away") for name in there)
    one, other = load_file(plain[-1].path), load_file(events[-1].path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_trained_text_encoder_stays(
    base: Path, movable: BaseModel, moves: Moves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "load", lambda *_, **__: movable)
    config = TrainConfig(base=str(base), precision="fp32", train_text_encoder=True)
    run_module._load(config, RunFolder.create(tmp_path / "run", config), torch.device("cpu"))
    assert moves == [("vae", "away")]


def test_the_count_follows(model: BaseModel, monkeypatch: pytest.MonkeyPatch):
    config = TrainConfig(base=model.info.source, batch=1, prior_count=0)
    sizes = {name: sum(t.numel() * t.element_size() for t in (*part.parameters(), *part.buffers()))
             for name, part in {**model.models(), "vae": model.vae}.items()}   # fmt: skip
    here, there, mac = (estimate_memory(config, "fp32", device=device) for device in ("cpu", "cuda", "mps"))
    assert (mac.offloaded, there.program) == (frozenset(), 0)
    assert here.offloaded == frozenset()   # too small for a file
    monkeypatch.setattr(memory, "MIN_OFFLOAD_BYTES", 0)
    assert estimate_memory(config, "fp32").offloaded == {"text_encoders", "vae"}
    assert there.offloaded == {"unet", "text_encoders", "vae"}
    assert abs(there.text_encoders - sizes["text_encoder"]) < 4096
    assert abs(there.vae - sizes["vae"]) < 4096
    both = estimate_memory(replace(config, train_text_encoder=True), "fp32", device="cuda")
    assert both.offloaded == {"unet", "vae"}
    eight = estimate_memory(replace(config, base_in_8_bits=True), "fp32", device="cuda")
    assert eight.offloaded == {"text_encoders", "vae"}   # quantized there, the UNet stays


@pytest.mark.gpu
def test_on_a_gpu_the_memory_is_free_and_pictures_stay_the_same(base: Path):
    model = load(str(base), "cuda", torch.float32)
    request = DrawRequest(prompt="a fox", steps=2)
    before = draw(model, request)[0].tobytes()
    full = torch.cuda.memory_allocated()
    model.offload(model.vae, model.text_encoder)
    weights = sum(t.numel() * t.element_size() for part in (model.vae, model.text_encoder) for t in part.parameters())
    assert full - torch.cuda.memory_allocated() >= weights
    assert {part.device.type for part in (model.vae, model.text_encoder)} == {"cpu"}
    assert draw(model, request)[0].tobytes() == before
    assert {part.device.type for part in (model.vae, model.text_encoder)} == {"cpu"}
    assert model.unet.device.type == "cuda"
