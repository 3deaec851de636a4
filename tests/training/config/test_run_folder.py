"""A run's folder: what is written there is what people see, whatever happened to the process in between."""

# pyright: reportArgumentType=false
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from atelier.training.config import run_folder as runs
from atelier.training.config.events import (
    Failed,
    Finished,
    Interrupted,
    Paused,
    Preparing,
    Previewed,
    Resumed,
    Saved,
    Stepped,
    Stopped,
    Validated,
    Warned,
    to_line,
)
from atelier.training.config.run_folder import COMMANDS, STALE_SECONDS, RunFolder, status
from atelier.training.config.train_config import TrainConfig

CONFIG = TrainConfig(name="rex", steps=10)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "20250101-rex", CONFIG)


def stepped(step: int, loss: float = 1.0, seconds: float = 2.0) -> Stepped:
    return Stepped(step, CONFIG.steps, loss, 0.0, 1e-3, seconds)


def tell(run: RunFolder, *events) -> None:
    for event in events:
        run.append(event)


def test_a_new_folder_holds_the_recipe_and_room_for_the_rest(run):
    assert run.id == "20250101-rex"
    assert run.config() == CONFIG
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "control", "previews", "recipe.toml"]
    assert run.events() == []


def test_a_run_never_takes_over_the_folder_of_another(run):
    with pytest.raises(FileExistsError):
        RunFolder.create(run.path, TrainConfig(name="other"))
    assert run.config() == CONFIG


def test_events_come_back_in_order_with_their_times(run):
    tell(run, Preparing("a"), stepped(1), Warned("– naïve\n"))
    times, events = zip(*run.events(), strict=True)
    assert events == (Preparing("a"), stepped(1), Warned("– naïve\n"))
    assert list(times) == sorted(times)
    assert abs(times[0] - time.time()) < 60


def test_a_half_written_last_line_waits_for_the_next_reading(run):
    run.append(Preparing("a"))
    line = to_line(stepped(1))
    with (run.path / "events.jsonl").open("a") as file:
        file.write(line[:20])
        file.flush()
        assert [event for _, event in run.events()] == [Preparing("a")]
        file.write(line[20:])
    assert [event for _, event in run.events()] == [Preparing("a"), stepped(1)]


def test_a_line_cut_by_a_kill_takes_no_later_event_with_it(run):
    run.append(Preparing("a"))
    with (run.path / "events.jsonl").open("a") as file:
        file.write(to_line(stepped(1))[:20])
    tell(run, Resumed(0), stepped(1))
    assert [event for _, event in run.events()] == [Preparing("a"), Resumed(0), stepped(1)]


def test_events_of_a_newer_version_are_skipped(run):
    run.append(Preparing("a"))
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"event": "dreamed", "time": 1.0}\nnot json\n')
    run.append(stepped(1))
    assert [event for _, event in run.events()] == [Preparing("a"), stepped(1)]


def test_a_command_is_taken_once_with_its_text(run):
    assert [run.take_command(name) for name in COMMANDS] == [None] * len(COMMANDS)
    run.send_command("preview", "a fox – “red”")
    run.send_command("stop")
    assert run.take_command("preview") == "a fox – “red”"
    assert run.take_command("preview") is None
    assert run.take_command("stop") == ""
    assert list((run.path / "control").iterdir()) == []


def test_of_pause_and_resume_the_last_word_counts(run):
    run.send_command("pause")
    run.send_command("resume")
    assert run.take_command("pause") is None
    run.send_command("pause")
    assert (run.take_command("pause"), run.take_command("resume")) == ("", None)


def test_what_is_no_command_is_refused_and_writes_nothing(run):
    for name in ("explode", "../recipe.toml", ""):
        with pytest.raises(ValueError, match="the commands are: pause, resume, stop, cancel, preview"):
            run.send_command(name)
    assert list((run.path / "control").iterdir()) == []


def test_a_heartbeat_is_touched_while_it_beats_and_gone_afterwards(run, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.01)
    heartbeat = run.path / "heartbeat"
    assert not run.is_alive()
    with run.heartbeat():
        assert run.is_alive()
        os.utime(heartbeat, (0, 0))
        assert wait_for(run.is_alive)
    assert not run.is_alive()
    assert not heartbeat.exists()


def wait_for(condition) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_the_heart_stops_with_an_error_too(run):
    with pytest.raises(KeyError), run.heartbeat():
        raise KeyError
    assert not run.is_alive()


@pytest.mark.parametrize(("age", "alive"), [(0, True), (STALE_SECONDS - 5, True), (STALE_SECONDS + 5, False)])
def test_an_old_heartbeat_is_no_life(run, age, alive):
    beat(run, age)
    assert run.is_alive() is alive


def beat(run: RunFolder, age: float = 0.0) -> None:
    path = run.path / "heartbeat"
    path.touch()
    os.utime(path, (time.time() - age, time.time() - age))


STATES = [
    ([], "queued", ""),
    ([Preparing("Loading")], "preparing", "Loading"),
    ([Preparing("Loading"), stepped(1)], "training", ""),
    ([stepped(1), Saved(1, "checkpoints/step-000001"), Paused(1)], "paused", ""),
    ([stepped(1), Paused(1), Resumed(1)], "training", ""),
    ([stepped(1), Paused(1, "The disk is full.")], "paused", "The disk is full."),
    ([stepped(1), Paused(1, "The disk is full."), Resumed(1)], "training", ""),
    ([stepped(1), Warned("Odd.")], "training", ""),
    ([stepped(1), Stopped(1, "Cancelled.")], "stopped", "Cancelled."),
    ([stepped(1), Interrupted("The machine went down.")], "interrupted", "The machine went down."),
    ([stepped(1), Failed("No.")], "failed", "No."),
    ([stepped(1), Finished(1, "a.safetensors", 9.5)], "done", ""),
    ([stepped(1), Failed("No."), Preparing("Loading")], "preparing", "Loading"),
    ([stepped(1), Interrupted("Gone."), Preparing("Loading"), Resumed(1)], "training", ""),
]


@pytest.mark.parametrize(("events", "state", "message"), STATES)
def test_the_events_tell_the_state(run, events, state, message):
    tell(run, *events)
    beat(run)
    now = status(run)
    assert (now.state, now.message, now.id, now.name) == (state, message, "20250101-rex", "rex")


@pytest.mark.parametrize(("events", "state", "message"), STATES)
@pytest.mark.parametrize("age", [None, STALE_SECONDS + 5])
def test_without_a_heartbeat_what_had_begun_is_interrupted(run, events, state, message, age):
    tell(run, *events)
    if age:
        beat(run, age)
    now = status(run)
    if state in ("preparing", "training", "paused"):
        assert now.state == "interrupted"
        assert "Resume" in now.message
        assert now.seconds_left is None
    else:
        assert (now.state, now.message) == (state, message)
    assert now.is_over == (now.state in ("interrupted", "stopped", "failed", "done"))


def test_the_numbers_of_a_run(run):
    tell(run, Preparing("a"), Warned("w1"), stepped(1, 3.0, 1.0), stepped(2, 2.0, 3.0), Validated(2, 5.0, True),
         Previewed(2, "a rex", "previews/000002-0.png"), stepped(3, 1.0, 2.0), Validated(3, 6.0, False), Warned("w2"))
    beat(run)
    now = status(run)
    assert (now.step, now.total_steps, now.best_step) == (3, 10, 2)
    assert now.losses == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert now.validation == [(2, 5.0), (3, 6.0)]
    assert now.previews == [Previewed(2, "a rex", "previews/000002-0.png")]
    assert now.warnings == ["w1", "w2"]
    assert now.seconds_left == pytest.approx(7 * 2.0)
    assert now.started == run.events()[0][0]
    tell(run, Finished(2, "a.safetensors", 9.5))
    now = status(run)
    assert (now.adapter, now.seconds, now.seconds_left) == ("a.safetensors", 9.5, None)


def test_the_time_left_is_judged_by_the_last_twenty_steps(tmp_path):
    run = RunFolder.create(tmp_path / "run", TrainConfig(name="rex", steps=100))
    tell(run, *(stepped(i, seconds=100.0) for i in range(1, 31)), *(stepped(i, seconds=2.0) for i in range(31, 51)))
    beat(run)
    run.append(Stepped(51, 100, 1.0, 0.0, 1e-3, 4.0))
    assert status(run).seconds_left == pytest.approx(49 * (19 * 2.0 + 4.0) / 20)


def measured(step: int) -> list:
    return [stepped(step, loss=step), Validated(step, step, True), Previewed(step, "", f"{step}.png")]


def test_a_resume_takes_back_what_was_measured_beyond_the_checkpoint(run):
    for step in (1, 2, 3, 4):
        tell(run, *measured(step))
    tell(run, Preparing("again"), Resumed(2))
    beat(run)
    now = status(run)
    assert (now.state, now.step) == ("training", 2)
    assert now.losses == now.validation == [(1, 1.0), (2, 2.0)]
    assert [preview.step for preview in now.previews] == [1, 2]
    tell(run, *measured(3))
    assert status(run).losses == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_start_from_the_beginning_takes_everything_back(run):
    for step in (1, 2, 3):
        tell(run, *measured(step))
    tell(run, Preparing("again"), Warned("There was no complete checkpoint"), *measured(1))
    beat(run)
    now = status(run)
    assert now.step == 1
    assert now.losses == now.validation == [(1, 1.0)]
    assert [preview.step for preview in now.previews] == [1]


def test_a_warning_is_told_once_however_often_the_run_was_resumed(run):
    tell(run, Warned("blurred"), stepped(1), Preparing("again"), Warned("blurred"), Warned("new"), Resumed(1))
    assert status(run).warnings == ["blurred", "new"]


def test_a_run_that_was_resumed_has_no_old_adapter_or_error(run):
    tell(run, stepped(1), Failed("The disk is full."), Preparing("Loading"), Resumed(1))
    beat(run)
    assert (status(run).state, status(run).message) == ("training", "")
