"""Checkpoints: what is read is what was written, and whatever happens to a write, an older state is left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from atelier.training.loop import checkpoint, optimizer_state
from atelier.training.loop.checkpoint import CheckpointError, TrainingState, read, read_newest, write


def state(step: int, seed: int = 0) -> TrainingState:
    torch.manual_seed(seed + step)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.3)
    weight.sum().backward()
    optimizer.step()
    return TrainingState(
        weights={"unet.a.up": weight.detach()},
        average={"unet.a.up": torch.randn(3, 4)},
        best={"unet.a.up": torch.tensor([float("nan"), -0.0, 1e-45])},
        generator=torch.Generator().manual_seed(step).get_state(),
        optimizer=optimizer.state_dict(),
        step=step,
        best_step=step // 2,
        best_loss=0.1 * step,
    )


def assert_same(one: TrainingState | None, two: TrainingState) -> None:
    assert one is not None
    for name in ("weights", "average", "best"):
        own, other = getattr(one, name), getattr(two, name)
        assert own.keys() == other.keys()
        assert all(own[key].numpy().tobytes() == other[key].numpy().tobytes() for key in own)
    assert torch.equal(one.generator, two.generator)
    torch.testing.assert_close(one.optimizer, two.optimizer, rtol=0, atol=0)
    assert (one.step, one.best_step, one.best_loss) == (two.step, two.best_step, two.best_loss)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    path = write(tmp_path, state(7))
    assert path == tmp_path / "step-000007"
    assert_same(read_newest(tmp_path), state(7))


def test_an_empty_state_comes_back(tmp_path):
    before = TrainingState({}, torch.Generator().get_state(), {})
    write(tmp_path, before)
    assert_same(read_newest(tmp_path), before)
    assert before.best_loss == float("inf")


def test_there_may_be_none(tmp_path):
    assert read_newest(tmp_path) is None
    assert read_newest(tmp_path / "no such folder") is None


def test_the_two_newest_are_kept(tmp_path):
    for step in (5, 10, 999_999, 1_000_000):   # the last one's name comes before the others' in the alphabet
        write(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    assert_same(read_newest(tmp_path), state(1_000_000))


def test_checkpoints_of_an_attempt_that_was_given_up_are_dropped(tmp_path):
    for step in (5, 10, 8):   # 10 was damaged, so the run went on from 5
        write(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000008"]


@pytest.fixture
def two(tmp_path) -> Path:
    """Checkpoints of two steps."""
    folder = tmp_path / "20250101-rex" / "checkpoints"
    for step in (5, 10):
        write(folder, state(step))
    return folder


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


FILES = ["state.json", "optimizer.json", *(f"{name}.safetensors" for name in ("weights", "average", "best", "generator",
                                                                              "optimizer"))]   # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_older_one_is_used_where_one_bit_of_the_newer_is_wrong_and_that_is_said(two, name, caplog):
    assert sorted(FILES) == sorted(path.name for path in (two / "step-000010").iterdir())
    flip(two / "step-000010" / name, -5)   # a last value, and no part of a header
    messages: list[str] = []
    assert_same(read_newest(two, messages.append), state(5))
    assert len(messages) == 1
    assert "step-000010" in messages[0]
    assert name in messages[0]
    assert messages[0] in caplog.text


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "average.safetensors", "generator.safetensors"])
def test_a_file_of_another_step_or_an_added_one_is_noticed(two, name):
    newest = two / "step-000010"
    shutil.copy(two / "step-000005" / name, newest / name)
    with pytest.raises(CheckpointError, match="step 5" if name == "state.json" else name):
        read(newest)


def test_a_pickle_beside_the_state_is_not_read(two):
    (two / "step-000010" / "optimizer.pt").write_bytes(b"not read")
    with pytest.raises(CheckpointError, match=r"not as they were written: optimizer\.pt"):
        read(two / "step-000010")


def test_a_checkpoint_of_another_run_or_under_another_step_is_refused(two, tmp_path):
    other = tmp_path / "20250101-oak" / "checkpoints"
    shutil.copytree(two, other)
    with pytest.raises(CheckpointError, match="belongs to step 10 of the run 20250101-rex"):
        read(other / "step-000010")
    (two / "step-000010").rename(two / "step-000011")
    with pytest.raises(CheckpointError, match="belongs to step 10"):
        read(two / "step-000011")


def test_a_checkpoint_of_a_newer_version_is_not_guessed_at(two, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
    write(two, state(15))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="newer version"):
        read(two / "step-000015")


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    write(tmp_path / "old", state(5))
    for damage in (lambda p: (p / "state.json").unlink(), lambda p: (p / "optimizer.safetensors").write_bytes(b""),
                   lambda p: (p / "weights.safetensors").write_bytes(b"\0" * 20),
                   lambda p: (p / "state.json").write_text('{"step": 10, "new": 1}')):   # fmt: skip
        folder = tmp_path / "checkpoints"
        newest = write(folder, state(10))
        shutil.copytree(tmp_path / "old", folder, dirs_exist_ok=True)
        damage(newest)
        assert_same(read_newest(folder), state(5))
        assert_same(read_newest(write(folder, state(10)).parent), state(10))   # and can be written again
        shutil.rmtree(folder)


class Crash(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("moment", range(8))
def test_a_crash_at_any_moment_leaves_the_older_checkpoint(tmp_path, monkeypatch, moment):
    write(tmp_path, state(5))
    moments = iter(range(100))

    def crashing(function):
        def maybe(*args, **kwargs):
            if next(moments) == moment:
                raise Crash
            return function(*args, **kwargs)

        return maybe

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(checkpoint, "save_file", crashing(checkpoint.save_file))
        patched.setattr(optimizer_state, "save_file", crashing(optimizer_state.save_file))
        patched.setattr(Path, "write_text", crashing(Path.write_text))
        patched.setattr(Path, "rename", crashing(Path.rename))
        write(tmp_path, state(10))
    assert next(moments) == moment + 1
    assert_same(read_newest(tmp_path), state(5))
    (tmp_path / ".step-000012.partial").mkdir()   # as a kill leaves it, which cleans nothing up
    write(tmp_path, state(15))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000015"]   # nothing half-written


def test_a_step_that_is_written_again_is_there_at_every_moment(tmp_path, monkeypatch):
    """A pause right after a checkpoint saves the same step again."""
    write(tmp_path, state(5))

    def crash(*_):
        raise Crash

    monkeypatch.setattr(Path, "rename", crash)
    write(tmp_path, state(5))
    assert_same(read_newest(tmp_path), state(5))
