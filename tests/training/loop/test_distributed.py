"""Several processes that teach one adapter: their shares are the whole, and their weights those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from atelier.adapters.core.base import AdapterSet
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.events import Event, Finished, Previewed, Saved, Stepped, Validated
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop import distributed
from atelier.training.loop.distributed import SINGLE_PROCESS, ProcessGroup, join_group
from atelier.training.recipes.dreambooth import TrainingData, recipe
from atelier.training.runs import run as run_module


def test_shares_are_the_whole_batch_without_overlap():
    for count in (1, 2, 3, 7):
        shares = [list(ProcessGroup(index, count).shard(5)) for index in range(count)]
        assert sorted(position for share in shares for position in share) == list(range(5))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_group(torch.device("cpu")) == SINGLE_PROCESS
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.broadcast("yes") == "yes"


@pytest.fixture
def data(model: BaseModel) -> TrainingData:
    """Four pictures of two sizes to learn, two to keep."""
    def some(count: int, *shape: int) -> list[Example]:
        rows = tokenize(model, ["a rex fox"] * count)
        return [Example(torch.randn(shape), torch.full(shape, 0.1), row) for row in rows]

    return TrainingData(some(4, 4, 8, 8), some(2, 4, 8, 12), [])


@pytest.mark.parametrize("count", [2, 3, 6])   # four pictures: with six processes two have none
def test_the_shares_losses_and_gradients_add_up_to_those_of_the_whole(
    model: BaseModel, trained, data: TrainingData, tmp_path: Path, count: int
):
    adapters: AdapterSet = trained(model)
    config = TrainConfig(name="rex", batch=3, prior_count=3, prior_weight=0.5)
    method = recipe(model, adapters, data, config, tmp_path)

    def shared(group: ProcessGroup) -> tuple[Tensor, list[Tensor]]:
        adapters.zero_grad()
        with method.mount():
            losses = method.microstep(torch.Generator().manual_seed(5), group)
            if (loss := losses.subject + losses.prior).requires_grad:
                loss.backward()
        return torch.stack([losses.subject, losses.prior]).detach(), [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in adapters.parameters()
        ]

    whole, gradient = shared(SINGLE_PROCESS)
    parts = [shared(ProcessGroup(index, count)) for index in range(count)]
    torch.testing.assert_close(sum(losses for losses, _ in parts), whole)
    for number, total in enumerate(gradient):
        torch.testing.assert_close(sum(part[number] for _, part in parts), total, rtol=1e-4, atol=1e-7)


def test_sums_reach_every_parameter_that_any_process_used(monkeypatch: pytest.MonkeyPatch):
    # What the other process sends: losses of 3 and 4, a gradient for the first and the third parameter.
    other = torch.tensor([3.0, 4, 1, 0, 1, 10, 10, 0, 0, 0, 30])
    monkeypatch.setattr(distributed, "reduce", lambda numbers, _: numbers + other)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1, 1))]
    parameters[0].grad = torch.tensor([1.0, 2.0])
    assert ProcessGroup(0, 2).all_reduce((1.0, 2.0), parameters) == [4, 6]
    assert [None if p.grad is None else p.grad.tolist() for p in parameters] == [[11, 12], None, [[30]]]


def launched(run: RunFolder, adapters: Path, place: Path) -> list[Event]:
    """Carry a run out in two processes, as a person would on two GPUs."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]   # fmt: skip
    command = [*launcher, "-m", "atelier.training.runs.run", str(run.path), "--adapters", str(adapters)]
    place.mkdir()
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(place), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [event for _, event in run.events()]


def test_two_processes_end_in_the_weights_of_one(base: Path, pictures: Path, tmp_path: Path):
    config = TrainConfig(
        name="rex", subject="fox", pictures=str(pictures), base=str(base), steps=4, batch=3, prior_count=1, lr=1e-3,
        warmup=0, accumulate=2, validate_every=4, preview_every=4, checkpoint_every=2, precision="fp32", ema=0.5,
        adapter={"rank": 2},
    )   # fmt: skip
    one, two = (RunFolder.create(tmp_path / name, config) for name in ("one", "two"))
    alone = list(run_module.run(one, tmp_path / "adapters-one"))
    together = launched(two, tmp_path / "adapters-two", tmp_path / "tmp")
    assert isinstance(alone[-1], Finished) and isinstance(together[-1], Finished), together[-1]

    # The first process alone speaks and writes.
    for kind in (Stepped, Validated, Previewed, Saved, Finished):
        assert [type(e) for e in together].count(kind) == [type(e) for e in alone].count(kind) > 0
    assert len(list((tmp_path / "adapters-two").iterdir())) == 1
    assert len(list((two.path / "previews").iterdir())) == 2   # before the first step and after the last
    losses, others = ([event.loss for event in events if isinstance(event, Stepped | Validated)]
                      for events in (alone, together))   # fmt: skip
    assert losses == pytest.approx(others, abs=1e-5)

    weights, theirs = load_file(alone[-1].path), load_file(together[-1].path)
    off = max((weights[name] - theirs[name]).abs().max().item() for name in weights)
    moved = max(weights[name].abs().max().item() for name in weights if name.endswith("up"))
    print(f"\nlargest difference of a weight {off:.1e}, and training moved them by {moved:.1e}")
    assert off < 1e-5 < moved / 100
