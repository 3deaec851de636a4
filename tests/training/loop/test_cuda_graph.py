"""Microsteps from a recording: that they are the plain ones, and that recording one would succeed on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Stepped
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop.batch import PromptEmbeddingCache, unet_inputs
from atelier.training.loop.cuda_graph import WARMUP_MICROSTEPS, CudaGraphs, can_record
from atelier.training.loop.distributed import SINGLE_PROCESS, ProcessGroup
from atelier.training.loop.optimizer_step import make_accelerator
from atelier.training.loop.recipe import Losses, MicrostepStages, Recipe
from atelier.training.loop.training_loop import Controls, Training
from atelier.training.recipes.dreambooth import DreamBoothInput, TrainingData, recipe, sample_subject_and_prior

NOBODY = Controls(take_command=lambda name: None, should_quit=lambda: False)
CONFIG = TrainConfig(
    name="rex", subject="fox", batch=2, accumulate=2, prior_count=2, steps=5, warmup=0, lr=0.01, min_snr_gamma=5.0,
    validate_every=0, preview_every=0, checkpoint_every=0, targets="attention",
)   # fmt: skip
QUICK = replace(CONFIG, steps=30, lr=0.1)
SPEC = Spec("toy.layer", (3, 4))


class Tape:
    """Records on the CPU as a GPU does: what was recorded runs on the same tensors, whatever is drawn later."""

    def __init__(self, *, fails: bool = False) -> None:
        self.ran, self.replayed, self.fails = 0, 0, fails

    def run(self, work: Callable[[], Losses]) -> Losses:
        self.ran += 1
        return work()

    def record(self, work: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        left = Losses(torch.zeros(()), torch.zeros(()))

        def replay() -> None:
            self.replayed += 1
            losses = work()
            left.subject.copy_(losses.subject)
            left.prior.copy_(losses.prior)

        return left, replay


class Row(NamedTuple):
    """What a microstep of the toy draws: inputs of one of two lengths."""

    x: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.x]

    def signature(self) -> Hashable:
        return self.x.shape


def toy(adapters: AdapterSet) -> Recipe:
    """Learn a small matrix."""

    def draw(generator: torch.Generator) -> Row:
        count = 2 + int(torch.randint(2, (), generator=generator))
        return Row(torch.randn(count, 4, generator=generator))

    def compute(row: Row) -> Losses:
        delta = adapters[SPEC.name].delta(torch.zeros(3, 4))
        goal = row.x.sum(1, keepdim=True).expand(-1, 3)
        return Losses(F.mse_loss(row.x @ delta.T, goal), 0.1 * delta.square().mean())

    return Recipe(adapters, nullcontext, lambda generator: compute(draw(generator)), MicrostepStages(draw, compute))


def training(folder: Path, gpu: Tape | None) -> Training:
    torch.manual_seed(1)
    recipe = toy(create_adapters("lora", {"rank": 2}, [SPEC]))
    return Training(recipe, QUICK, folder, Accelerator(cpu=True), SINGLE_PROCESS, gpu)


def trained(folder: Path, gpu: Tape | None) -> tuple[list[float], Tensor]:
    one = training(folder, gpu)
    losses = [event.loss for event in one.events(NOBODY) if isinstance(event, Stepped)]
    return losses, torch.cat([p.detach().flatten() for p in one.parameters])


@pytest.mark.parametrize("fails", [False, True])
def test_recorded_or_not_the_weights_are_the_same_to_the_last_bit(tmp_path, fails: bool, caplog):
    plain_losses, plain = trained(tmp_path, None)
    tape = Tape(fails=fails)
    losses, weights = trained(tmp_path, tape)
    microsteps = QUICK.steps * QUICK.accumulate
    warmup = 2 * WARMUP_MICROSTEPS
    assert (tape.ran, tape.replayed) == ((microsteps, 0) if fails else (warmup, microsteps - warmup))
    assert losses == plain_losses
    assert torch.equal(weights, plain)
    assert losses[-1] < 0.5 * losses[0]
    assert ["run one by one" in message for message in caplog.messages] == [True] * fails


def test_a_new_choice_of_what_trains_is_recorded_anew(tmp_path):
    one = training(tmp_path, Tape())
    recorder = one.recorder
    assert recorder is not None
    for _ in range(20):
        recorder(one.generator)
    assert len(recorder._graphs) == 2
    one._update_masks()
    assert not recorder._graphs


class NoWaiting(TorchDispatchMode):
    """Refuses what a recording on a GPU can't hold: reading a value on the CPU, and bringing one from there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"), name
        devices = {t.device.type for t in tensors_in((args, kwargs)) if t.dim()}
        result = function(*args, **(kwargs or {}))
        devices |= {t.device.type for t in tensors_in(result) if t.dim()}
        assert len(devices) < 2, f"{name} goes from one device to another: {devices}"
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


@pytest.mark.parametrize("kind", ["lora", "dora", "lorta", "shira"])
def test_nothing_in_a_microstep_waits_for_the_device(model, tmp_path, kind: str, monkeypatch: pytest.MonkeyPatch):
    """On the meta device, which has no values to wait for, and knows no autocast either."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    far = replace(model, unet=without_values(model.unet), text_encoder=copy.deepcopy(model.text_encoder).to("meta"))
    adapters = create_adapters(kind, {}, find_targets({"unet": far.unet}, "attention")).to("meta")
    parts = recipe(far, adapters, TrainingData([], [], []), CONFIG, tmp_path).stages
    assert parts is not None
    drawn = lesson_on_meta(model, adapters)
    with mount(far.models(), Mix(((adapters, 1.0),))), NoWaiting():
        losses = parts.compute(drawn)
        (losses.subject + losses.prior).backward()
    assert all(p.grad is not None for p in adapters.parameters())


def lesson_on_meta(model: BaseModel, adapters: AdapterSet) -> DreamBoothInput:
    """Pictures of the subject and of other things."""
    def moved(value: Any, *names: str) -> Any:
        return replace(value, **{name: getattr(value, name).to("meta") for name in names})

    data = TrainingData(examples(model, 2), examples(model, 2), [])
    batch = sample_subject_and_prior(model, data, CONFIG, torch.Generator().manual_seed(0))
    rows, mine = PromptEmbeddingCache(model, adapters), range(len(batch.examples))
    shown = [moved(replace(one, noisy=moved(one.noisy, "latents", "timesteps", "target"),
                           text=moved(one.text, "features")), "sizes", "weights")
             for one in unet_inputs(model, batch, rows, mine, CONFIG.min_snr_gamma)]   # fmt: skip
    return DreamBoothInput(batch, mine, shown)


def examples(model: BaseModel, count: int) -> list[Example]:
    rows = tokenize(model, ["a rex fox"] * count)
    return [Example(torch.randn(4, 8, 8), torch.full((4, 8, 8), 0.1), row) for row in rows]


def test_the_test_above_sees_a_wait():
    with pytest.raises(AssertionError, match="goes from one device"), NoWaiting():
        torch.ones(3).to("meta")
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        torch.ones(()).item()


def without_values(unet: Any) -> Any:
    with torch.device("meta"):
        return type(unet).from_config(unet.config).requires_grad_(False)


def test_what_can_not_be_recorded_is_not_tried():
    gpu = torch.device("cuda")
    assert can_record(gpu, CONFIG, SINGLE_PROCESS)
    assert not can_record(torch.device("cpu"), CONFIG, SINGLE_PROCESS)
    assert not can_record(gpu, CONFIG, ProcessGroup(0, 2))
    changes = {"train_text_encoder": True, "whole_gradient": True, "gradient_checkpointing": True, "record": "off"}
    for name, value in changes.items():
        assert not can_record(gpu, replace(CONFIG, **{name: value}), SINGLE_PROCESS), name


@pytest.mark.gpu
def test_a_graph_trains_as_the_plain_loop_does(tmp_path):
    model = load("embedded", "cuda", torch.float32)
    data = TrainingData(examples(model, 2), examples(model, 2), [])
    found = []
    for gpu in (None, CudaGraphs()):
        torch.manual_seed(1)
        adapters = create_adapters("lora", {}, find_targets({"unet": model.unet}, "attention")).to(model.device)
        method = recipe(model, adapters, data, CONFIG, tmp_path)
        one = Training(method, CONFIG, tmp_path, make_accelerator(model), SINGLE_PROCESS, gpu)
        losses = [event.loss for event in one.events(NOBODY) if isinstance(event, Stepped)]
        found.append((torch.tensor(losses), torch.cat([p.detach().flatten() for p in adapters.parameters()])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
