"""Whole runs, from a recipe in a folder to an adapter file: in this process, and in children that are killed."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.native import load_adapter, read_header
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.device import best_device
from atelier.training.base_models.device_lock import DeviceLock, running_job
from atelier.training.config.events import (
    Event,
    Failed,
    Finished,
    Measured,
    Preparing,
    Previewed,
    Resumed,
    Saved,
    Stepped,
    Stopped,
    Validated,
    Warned,
)
from atelier.training.config.run_folder import RunFolder, status
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.images import PictureError
from atelier.training.loop import checkpoint
from atelier.training.loop.training_loop import Training
from atelier.training.runs import resource_plan
from atelier.training.runs import run as run_module
from atelier.training.runs.signals import quit_signals

Start = Callable[..., RunFolder]


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    folder.mkdir()
    return folder


@pytest.fixture
def new_run(tmp_path: Path, base: Path, pictures: Path) -> Start:
    """Make the folder of a short run on the tiny base model."""
    plain = TrainConfig(
        name="rex", subject="fox", pictures=str(pictures), base=str(base), steps=2, batch=2, prior_weight=0.0, lr=0.05,
        warmup=0, validate_every=0, preview_every=0, checkpoint_every=0, precision="fp32", adapter={"rank": 2},
    )   # fmt: skip

    def make(name: str = "20250101-rex", **changes: Any) -> RunFolder:
        return RunFolder.create(tmp_path / "runs" / name, replace(plain, **changes))

    return make


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


def tensor_bytes(path: Path | str) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def test_a_whole_run_leaves_an_adapter_with_everything_it_should_remember(new_run, adapters, pictures, base):
    run = new_run(
        steps=4, validate_every=2, preview_every=4, checkpoint_every=2, train_text_encoder=True, trigger="zxq",
        prior_weight=1.0, prior_count=1,
    )  # fmt: skip
    started = datetime.now(UTC) - timedelta(seconds=1)
    (pictures / "diary.png").write_text("Dear diary")
    events = list(run_module.run(run, adapters))
    kinds = [type(event) for event in events if not isinstance(event, Preparing)]
    # Two warnings: of the diary, and of pictures of noise, which look like photographs.
    assert kinds == [Warned, Warned, Previewed, Stepped, Stepped, Validated, Measured, Saved, Stepped, Stepped,
                     Validated, Measured, Previewed, Finished]   # fmt: skip
    assert "diary.png" in events[[type(e) for e in events].index(Warned)].message   # type: ignore[union-attr]
    assert [event for _, event in run.events()] == events
    end = finished(events)
    assert [path.name for path in adapters.iterdir()] == ["rex.safetensors"]
    assert end.path == str(adapters / "rex.safetensors")

    header = read_header(Path(end.path))
    memory = header.metadata
    expected = {
        "atelier.name": "rex", "atelier.trigger": "zxq", "atelier.subject": "fox", "atelier.base": str(base),
        "atelier.family": "embedded", "atelier.title": "tiny", "atelier.pictures": "9",
        "atelier.best_step": str(end.step), "atelier.run": run.id,
    }  # fmt: skip
    assert memory.items() >= expected.items()
    created = datetime.fromisoformat(memory["atelier.created"])
    assert created.tzinfo == UTC
    assert started <= created + timedelta(seconds=1) <= datetime.now(UTC) + timedelta(seconds=1)
    recipe = run.config().to_dict()
    assert recipe.pop("pictures") == str(pictures)
    assert tomllib.loads(memory["atelier.recipe"]) == recipe
    told = {key: value for key, value in memory.items() if key not in ("atelier.base", "atelier.recipe")}
    assert not [key for key, value in told.items() if str(pictures.parent) in value]
    kind, picture = memory["modelspec.thumbnail"].split(",", 1)
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(picture, validate=True))).size == (32, 32)

    saved = load_adapter(Path(end.path))
    assert (header.kind, saved.components()) == ("lora", {"unet", "text_encoder"})
    assert all(adapter.delta(torch.zeros(adapter.spec.shape)).any() for adapter in saved)
    now = status(run)
    assert (now.state, now.adapter, now.step, len(now.losses), len(now.previews)) == ("done", end.path, 4, 4, 2)
    assert (run.path / now.previews[0].path).is_file()
    assert not run.is_alive()


def test_a_trigger_word_with_a_meaning_is_told_at_the_start_and_not_on_resuming(new_run, adapters, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(run_module, "trigger_word_warning", lambda _, word: asked.append(word) or "It means something.")
    run = new_run(checkpoint_every=1)
    for again in (False, True):
        events = list(run_module.run(run, adapters, resume=again))
        assert (Warned("It means something.") in events) is not again
    assert asked == ["rex"]


def test_where_no_pictures_are_asked_for_there_is_no_thumbnail(new_run, adapters):
    end = finished(list(run_module.run(new_run(), adapters)))
    assert "modelspec.thumbnail" not in read_header(Path(end.path)).metadata


def test_the_recipe_decides_the_weights(new_run, adapters):
    ends = [
        finished(list(run_module.run(new_run(f"run-{i}", seed=seed), adapters))) for i, seed in enumerate((3, 3, 4))
    ]
    same, again, other = (tensor_bytes(end.path) for end in ends)
    assert same == again
    assert same != other


def test_a_name_that_is_taken_gets_a_number_and_nothing_is_overwritten(new_run, adapters):
    (adapters / "rex.safetensors").write_bytes(b"somebody's work")
    (adapters / "rex-2.safetensors").write_bytes(b"more of it")
    end = finished(list(run_module.run(new_run(), adapters)))
    assert Path(end.path).name == "rex-3.safetensors"
    assert (adapters / "rex.safetensors").read_bytes() == b"somebody's work"
    assert (adapters / "rex-2.safetensors").read_bytes() == b"more of it"


def test_the_folder_for_the_adapter_is_made_where_there_is_none(new_run, adapters):
    end = finished(list(run_module.run(new_run(), adapters / "deep" / "down")))
    assert Path(end.path) == adapters / "deep" / "down" / "rex.safetensors"
    assert Path(end.path).is_file()


def test_a_run_goes_on_from_its_checkpoint_in_another_call(new_run, adapters):
    whole = finished(list(run_module.run(new_run("whole", steps=4, checkpoint_every=2), adapters)))
    cut = new_run("cut", steps=4, checkpoint_every=2)
    for event in run_module.run(cut, adapters):
        if isinstance(event, Saved):
            break
    torch.manual_seed(77)
    events = list(run_module.run(cut, adapters, resume=True))
    assert [event.step for event in events if isinstance(event, Resumed | Stepped)] == [2, 3, 4]
    assert tensor_bytes(finished(events).path) == tensor_bytes(whole.path)


def test_a_resume_without_a_checkpoint_starts_again_and_says_so(new_run, adapters):
    events = list(run_module.run(new_run(), adapters, resume=True))
    assert any(isinstance(event, Warned) and "no complete checkpoint" in event.message for event in events)
    assert finished(events).step == 2


def failure(run: RunFolder, adapters: Path) -> str:
    events = list(run_module.run(run, adapters))
    assert isinstance(events[-1], Failed), events[-1]
    assert run.events()[-1][1] == events[-1]
    assert list(adapters.iterdir()) == []
    assert not run.is_alive()
    assert status(run).state == "failed"
    return events[-1].message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pictures": "/nowhere"}, "/nowhere can't be opened: "),
        ({"base": "/nowhere"}, "/nowhere does not exist"),
        ({"resolution": 4}, "4"),
        ({"base": "somebody/their-model"}, "could not be downloaded"),
    ],
)
def test_what_can_not_be_used_is_a_sentence_and_no_adapter(new_run, adapters, change, words):
    assert words in failure(new_run(**change), adapters)


def test_a_folder_without_a_usable_picture_is_a_sentence_and_no_adapter(new_run, adapters, pictures):
    for path in pictures.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    message = failure(new_run(), adapters)
    assert "None of the pictures" in message
    assert "0.png" in message


def test_a_damaged_recipe_is_a_sentence(new_run, adapters):
    run = new_run()
    recipe = run.path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("steps = 2", "steps = 0"))
    events = list(run_module.run(run, adapters))
    assert isinstance(events[-1], Failed)
    assert "steps is 0" in events[-1].message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SettingError("steps is 0."), r"steps is 0\."),
        (BaseError("That is no base model."), r"That is no base model\."),
        (PictureError("No pictures."), r"No pictures\."),
        (FloatingPointError("Unstable."), r"Unstable\."),
        (OSError(28, "No space left on device"), r"disk is full.*resume"),
        (KeyError("x"), r"unexpected.*KeyError.*'x'.*log"),
    ],
)
def test_every_error_has_words(error, words):
    assert re.search(words, run_module.explain(error))


def test_an_error_in_mid_training_is_told_and_goes_to_the_log(new_run, adapters, monkeypatch, caplog):
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "write", broken)
    run = new_run(checkpoint_every=1)
    assert "Input/output error" in failure(run, adapters)
    assert "Traceback" in caplog.text


def test_a_run_whose_result_does_not_fit_on_the_disk_waits_and_goes_on_from_its_checkpoint(
    new_run, adapters, monkeypatch
):
    whole = finished(list(run_module.run(new_run("whole", checkpoint_every=1), adapters)))
    errors = [OSError(28, "No space left on device")]
    save = run_module.save_result

    def full(*arguments: Any) -> Path:
        if errors:
            raise errors.pop()
        return save(*arguments)

    monkeypatch.setattr(run_module, "save_result", full)
    monkeypatch.setattr(run_module, "WAIT_SECONDS", 0.01)
    events = list(run_module.run(new_run("short", checkpoint_every=1), adapters))
    said = [event.what for event in events if isinstance(event, Preparing)]
    assert "The disk is full. Free some space. The run continues by itself." in said
    assert [event.step for event in events if isinstance(event, Stepped | Resumed)] == [1, 2, 1, 2]
    assert tensor_bytes(finished(events).path) == tensor_bytes(whole.path)


def test_an_event_that_does_not_fit_on_the_disk_is_written_when_there_is_room(new_run, adapters, monkeypatch):
    errors, append = [OSError(28, "No space left on device")] * 3, RunFolder.append

    def full(run: RunFolder, event: Event) -> None:
        if isinstance(event, Stepped) and errors:
            raise errors.pop()
        append(run, event)

    monkeypatch.setattr(RunFolder, "append", full)
    monkeypatch.setattr(run_module, "WAIT_SECONDS", 0.01)
    events = list(run_module.run(run := new_run(), adapters))
    assert not errors
    assert [event for _, event in run.events()] == events


def test_a_run_that_was_killed_before_it_could_say_that_it_was_done_leaves_one_adapter(new_run, adapters):
    run = new_run(steps=4, checkpoint_every=2)
    done = finished(list(run_module.run(run, adapters)))
    events = list(run_module.run(run, adapters, resume=True))   # as after a kill before the last event
    assert events == [replace(done, seconds=0.0)]
    spoilt = Path(done.path).read_bytes()[:-4] + b"\xff" * 4   # not a number: the file is replaced
    Path(done.path).write_bytes(spoilt)
    repaired = finished(list(run_module.run(run, adapters, resume=True)))
    assert repaired.path == done.path
    assert [path.name for path in adapters.iterdir()] == ["rex.safetensors"]
    assert len(load_adapter(Path(done.path))) > 0


def test_a_second_process_of_a_run_is_refused_and_changes_nothing(new_run, adapters):
    first = run_module.run(run := new_run(steps=4), adapters)
    next(first)
    before = (run.path / "events.jsonl").read_bytes()
    code = (
        "import sys; from atelier.training.runs import run; sys.argv = ['run', sys.argv[1], '--adapters', sys.argv[2]];"
        "sys.exit(run.main())"
    )
    second = subprocess.run([sys.executable, "-c", code, str(run.path), str(adapters)], capture_output=True, text=True)
    assert second.returncode == run_module.BUSY
    assert "Another process is working on the run 20250101-rex already." in second.stderr
    assert "Traceback" not in second.stderr
    assert run.is_alive()
    assert (run.path / "events.jsonl").read_bytes() == before
    assert [event for event in first if isinstance(event, Finished)]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), pytest.param(MemoryError(), marks=pytest.mark.slow),
     pytest.param(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
                  marks=pytest.mark.slow)],
)   # fmt: skip
def test_a_run_that_is_short_of_memory_continues_from_its_checkpoint_with_the_next_saving(
    new_run, adapters, monkeypatch, error
):
    run, savings, advance = new_run(steps=4, batch=2, checkpoint_every=2), [], Training._train_step

    def short(training: Training) -> Stepped:
        config = training.config
        if training.step == 2 and config.batch == 2:   # twice: the first saving does not suffice
            savings.append((config.gradient_checkpointing, config.batch))
            raise error
        return advance(training)

    monkeypatch.setattr(Training, "_train_step", short)
    events = list(run_module.run(run, adapters))
    finished(events)
    assert savings == [(False, 2), (True, 2)]
    said = [event.message for event in events if isinstance(event, Warned)]
    assert len(said) == len({*said}) == 3
    assert "look like photographs" in said[0]
    assert re.search(r"need about \d+ MB .* is free. The run continues with less: .* recomputed", said[1])
    assert "the batch size is 1 instead of 2" in said[2]
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]


def test_a_run_that_can_not_do_with_less_memory_fails_with_a_sentence(new_run, adapters, monkeypatch):
    def short(_: Training) -> Stepped:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "_train_step", short)
    message = failure(new_run(batch=1, gradient_checkpointing=True, base_in_8_bits=True), adapters)
    assert "GB is free. Use a smaller resolution or base model." in message


@contextmanager
def device_taken() -> Iterator[None]:
    lock = DeviceLock(best_device())
    assert lock.acquire("another", Path("/elsewhere/runs/1"))
    yield
    lock.release()


def test_a_second_run_waits_for_the_device(new_run, adapters, monkeypatch):
    monkeypatch.setattr(run_module, "WAIT_SECONDS", 0.01)
    run = new_run()
    training = run_module.run(run, adapters)
    with device_taken():
        for _ in range(3):
            waiting = next(training)
            assert isinstance(waiting, Preparing)
            assert "another job" in waiting.what and "another" in waiting.what and "/elsewhere/runs/1" in waiting.what
        assert run.is_alive()
        assert status(run).state == "preparing"
    finished(list(training))


def test_a_run_holds_the_device_until_it_is_over_however_it_ends(new_run, adapters):
    lock = DeviceLock(best_device())
    for i, change in enumerate(({}, {"pictures": "/nowhere"})):
        training = run_module.run(new_run(f"run-{i}", **change), adapters)
        assert isinstance(next(training), Preparing)
        assert not lock.acquire("another", Path())
        job = running_job(best_device())
        assert job is not None and (job.name, job.process) == ("rex", os.getpid())
        assert isinstance(list(training)[-1], Finished | Failed)
        assert running_job(best_device()) is None
        assert lock.acquire("another", Path())
        lock.release()


def test_a_run_that_waits_can_be_cancelled(new_run, adapters, monkeypatch):
    monkeypatch.setattr(run_module, "WAIT_SECONDS", 0.01)
    run = new_run()
    with device_taken():
        training = run_module.run(run, adapters)
        next(training)
        run.send_command("cancel")
        events = list(training)
    assert isinstance(events[-1], Stopped)
    assert status(run).state == "stopped"


@pytest.mark.parametrize("command", ["cancel", "stop"])
def test_a_run_that_is_ended_before_its_first_step_leaves_no_adapter(new_run, adapters, command):
    run = new_run()
    run.send_command(command)
    events = list(run_module.run(run, adapters))
    assert isinstance(events[-1], Stopped)
    assert status(run).state == "stopped"
    assert list(adapters.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_terminal_and_of_the_system_ask_to_save_too(number):
    before = signal.signal(number, signal.SIG_DFL)   # these tests may run where it is ignored, as under nohup
    try:
        with quit_signals() as quitting:
            os.kill(os.getpid(), number)
            assert quitting.wait(5)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_under_nohup_the_end_of_the_terminal_is_nothing():
    inherited = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with quit_signals() as quitting:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not quitting.wait(0.01)
    finally:
        signal.signal(signal.SIGHUP, inherited)


def test_the_first_interrupt_asks_to_save_and_the_second_ends(new_run):
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)   # a job in the background ignores Ctrl-C
    try:
        with quit_signals() as quitting:
            assert not quitting.is_set()
            os.kill(os.getpid(), signal.SIGINT)
            assert quitting.wait(5)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_run_in_another_thread_leaves_the_signals_alone(new_run, adapters):
    before, kinds = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        kinds.extend(type(event) for event in run_module.run(new_run(), adapters))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert kinds[-1] is Finished
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_recipe_names_the_precision(new_run, precision):
    run = new_run(precision=precision)
    model = run_module._load(run.config(), run, torch.device("cpu"))
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert not any(module.training for module in model.unet.modules())


def test_gradient_checkpointing_is_turned_on_where_asked_for(new_run):
    run = new_run(gradient_checkpointing=True)
    model = run_module._load(run.config(), run, torch.device("cpu"))
    assert model.unet.is_gradient_checkpointing
    assert model.unet.training


def test_a_run_in_half_precision_learns_and_draws(new_run, adapters):
    events = list(run_module.run(new_run(precision="bf16", preview_every=2, validate_every=2), adapters))
    assert all(event.loss > 0 for event in events if isinstance(event, Stepped | Validated))
    saved = load_adapter(Path(finished(events).path))
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("command", "change", "code"), [("", {}, 0), ("", {"pictures": "/nowhere"}, 1), ("cancel", {}, 3)]
)
def test_the_exit_code_tells_how_it_ended(new_run, adapters, monkeypatch, command, change, code):
    run = new_run(**change)
    if command:
        run.send_command(command)
    monkeypatch.setattr(sys, "argv", ["run", str(run.path), "--adapters", str(adapters)])
    assert run_module.main() == code
    assert len(list(adapters.iterdir())) == (code == 0)


class Child:
    """A training process of its own, with one thread and its own device lock."""

    def __init__(self, run: RunFolder, adapters: Path, *options: str) -> None:
        self.run, self.seen = run, len(run.events())
        locks = run.path / "locks"
        locks.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atelier.training.runs.run", str(run.path), "--adapters", str(adapters), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(locks)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def events(self) -> list[Event]:
        """What this process has said so far."""
        return [event for _, event in self.run.events()[self.seen :]]

    def wait_for(self, enough: Callable[[list[Event]], bool]) -> None:
        while not enough(self.events()):
            assert self.process.poll() is None, self.events()[-3:]
            time.sleep(0.005)

    def end(self) -> int:
        return self.process.wait()


@pytest.fixture
def child(adapters: Path) -> Iterator[Callable[..., Child]]:
    """Start training processes; none outlives the test."""
    started: list[Child] = []

    def start(run: RunFolder, *options: str) -> Child:
        started.append(Child(run, adapters, *options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.end()


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, Stepped)]


@pytest.mark.slow
def test_a_child_that_is_killed_and_told_to_end_still_ends_in_the_same_weights(new_run, child):
    plan = {"steps": 30, "checkpoint_every": 5, "validate_every": 10, "ema": 0.5, "prior_weight": 1.0, "prior_count": 1,
            "stop_when": "never"}   # fmt: skip
    whole, cut = new_run("whole", **plan), new_run("cut", **plan)
    undisturbed = child(whole)

    killed = child(cut)
    killed.wait_for(lambda events: steps(events)[-1:] > [5] and any(isinstance(event, Saved) for event in events))
    killed.process.kill()
    assert killed.end() == -signal.SIGKILL
    assert max(steps(killed.events())) < 30
    os.utime(cut.path / "heartbeat", (0, 0))   # what fifteen seconds of silence do
    assert status(cut).state == "interrupted"

    ended = child(cut, "--resume")
    ended.wait_for(lambda events: bool(steps(events)))
    ended.process.terminate()
    assert ended.end() == run_module.STOPPED == 3
    first, last = (next(e for e in events if isinstance(e, Resumed | Saved | Stepped))
                   for events in (ended.events(), ended.events()[::-1]))   # fmt: skip
    assert isinstance(first, Resumed)
    assert first.step % 5 == 0
    assert last == Saved(max(steps(ended.events())), f"checkpoints/step-{max(steps(ended.events())):06d}")
    assert not cut.is_alive()
    assert status(cut).state == "interrupted"

    resumed = child(cut, "--resume")
    assert (resumed.end(), undisturbed.end()) == (run_module.DONE, run_module.DONE)
    assert steps(resumed.events())[0] == last.step + 1
    one, other = status(whole), status(cut)
    assert tensor_bytes(one.adapter) == tensor_bytes(other.adapter)
    assert one.losses == other.losses
    assert one.validation == other.validation
    assert len(one.losses) == 30


def test_a_measured_precision_is_kept_for_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunFolder.create(tmp_path / "run", TrainConfig(name="rex"))
    answers = iter(["bf16", "fp32"])
    monkeypatch.setattr(resource_plan, "choose_precision", lambda *_: next(answers))
    asked = [resource_plan.run_precision(run.config(), run, torch.device("cpu")) for _ in range(2)]
    assert asked == ["bf16", "bf16"]
