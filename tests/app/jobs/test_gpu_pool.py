"""Which card a job gets, where there are several."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atelier.app.jobs import gpu_pool as cards
from atelier.app.jobs.child_process import run_child
from atelier.app.jobs.gpu_pool import GpuPool, find_gpus
from atelier.training.config.events import Failed
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig


@pytest.fixture(autouse=True)
def without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch):
    """Pretend what nvidia-smi says."""

    def say(text: str) -> None:
        monkeypatch.setattr(cards.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))

    return say


def test_cards_without_code_are_left_out(nvidia, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_86"])
    nvidia("GPU-a, 8.6\nGPU-b, 6.1\nGPU-c, 7.5\n")
    assert find_gpus() == ["GPU-a", "GPU-c"]
    nvidia("GPU-b, 6.1\n")   # nothing to choose, and nothing looked up
    assert find_gpus() == ["GPU-b"]
    nvidia("No devices were found\n")
    assert find_gpus() == []


def test_without_the_tool_there_are_none(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(cards.subprocess, "run", missing)
    assert find_gpus() == []


def test_what_a_person_lets_be_seen_is_all_there_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert find_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus() == []


@pytest.mark.parametrize("names", [[], ["GPU-a"]])
def test_one_card_is_left_to_torch(names: list[str]):
    pool = GpuPool(names)
    assert pool.size == 1
    with pool.card() as environment:
        assert environment == {}


def test_two_jobs_have_two_cards_and_give_them_back():
    pool = GpuPool(["GPU-a", "GPU-b"])
    with pool.card() as one:
        assert one == {"CUDA_VISIBLE_DEVICES": "GPU-b"}   # drawings use the first
        with pool.card() as two:
            assert two == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
            waiting = threading.Thread(target=lambda: pool.card().__enter__(), daemon=True)
            waiting.start()
            waiting.join(0.1)
            assert waiting.is_alive()   # a third one waits
        waiting.join(5)
        assert not waiting.is_alive()


def test_the_process_of_a_job_sees_its_card_alone(tmp_path: Path):
    run = RunFolder.create(tmp_path / "run", TrainConfig(name="rex"))
    show = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    run_child(run, tmp_path, lambda *_: show, {"CUDA_VISIBLE_DEVICES": "GPU-b"})
    assert (run.path / "log.txt").read_text().strip() == "GPU-b"
    assert isinstance(run.events()[-1][1], Failed)   # it made no adapter
    assert subprocess.run(["true"]).returncode == 0
