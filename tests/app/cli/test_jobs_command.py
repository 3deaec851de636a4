"""``atelier jobs``: every action finds its run, says what it did, and refuses in a sentence what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.cli.arguments import JOB_ACTIONS
from atelier.app.cli.jobs import _ACTIONS
from atelier.app.cli.main import main
from atelier.app.jobs.jobs import list_runs, new_run, submit
from atelier.app.jobs.queue import open_queue
from atelier.app.store.home import Home, open_home
from atelier.training.config.events import Failed, Finished, Measured, Stepped, StoppedEarly
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.snapshots import write_snapshot


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def finished(home: Home, name: str = "rex") -> RunFolder:
    run = new_run(home, TrainConfig(name=name, steps=30))
    write_snapshot(run.path, 20, create_adapters("lora", {"rank": 2}, [Spec("unet.layer", (3, 4))]))
    measured = [Measured(step, 0.6, 0.2, 1.0, 0.1, [0.2] * 4, 10**9) for step in (10, 20)]
    for event in (Stepped(20, 30, 0.1, 0.0, 1e-3, 0.1), *measured, StoppedEarly(20, 20, "Enough. Step 20 is saved."),
                  Finished(20, "rex.safetensors", 1.0)):
        run.append(event)
    return run


def said(capsys, *arguments: str) -> str:
    assert main(["jobs", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    assert main(["jobs", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("atelier: ") and "Traceback" not in err
    return err


def test_every_action_is_there():
    assert set(_ACTIONS) | {"list"} == set(JOB_ACTIONS)


def test_runs_are_listed_and_shown(home, capsys):
    assert "no runs yet" in said(capsys)
    run = finished(home)
    assert "rex" in said(capsys, "list") and json.loads(said(capsys, "--json"))[0]["state"] == "done"
    shown = json.loads(said(capsys, "show", "rex", "--json"))
    assert (shown["memorization (AUC)"], shown["saved steps"], shown["id"]) == (1.0, "20", run.id)
    assert "by heart" in shown["health"] and "Enough" in shown["stopped early"]
    assert said(capsys, "show", run.id) == said(capsys, "show", "rex")


def test_a_log_is_printed(home, capsys):
    run = finished(home)
    assert "empty" in said(capsys, "log", "rex")
    (run.path / "log.txt").write_text("line one\n")
    assert said(capsys, "log", "rex") == "line one\n"


def test_commands_reach_a_running_process_and_nobody_else(home, capsys):
    run = new_run(home, TrainConfig(name="rex", steps=30), started=True)
    run.append(Stepped(5, 30, 0.1, 0.0, 1e-3, 0.1))
    for command in ("pause", "save", "stop"):
        assert said(capsys, command, "rex").startswith("rex: ")
        assert run.take_command(command) == ""
    said(capsys, "preview", "rex", "--prompt", "a boat")
    assert run.take_command("preview") == "a boat"
    done = finished(home, "fox")
    for command in ("pause", "save", "stop", "cancel"):
        assert "done" in refused(capsys, command, "fox")
        assert done.take_command(command) is None
    assert "already" in refused(capsys, "retry", "rex")


def test_a_failed_run_is_queued_again(home, capsys):
    run = new_run(home, TrainConfig(name="rex", steps=30))
    run.append(Failed("The memory ran out."))
    assert "in the queue" in said(capsys, "retry", "rex")
    assert list_runs(home)[0].state == "queued"


def test_the_queue_changes_its_order(home, capsys):
    for name in ("a", "b", "c"):
        submit(home, TrainConfig(name=name))
    assert "Number 1" in said(capsys, "sooner", "b")
    assert "Number 3" in said(capsys, "later", "a")
    assert "Number 3" in said(capsys, "later", "a"), "it stays in the queue"
    with open_queue(home) as queue:
        assert [id[-1] for id in queue.waiting()] == ["b", "c", "a"]
    assert "not waiting" in refused(capsys, "sooner", finished(home).id)


def test_steps_are_kept_and_what_is_missing_is_told(home, capsys):
    finished(home)
    assert "rex-step-20 is in the library" in said(capsys, "keep", "rex", "--step", "20")
    assert "saved steps are: 20" in refused(capsys, "keep", "rex", "--step", "3")
    assert "needs two" in refused(capsys, "average", "rex")
    assert "no run named 'gone'" in refused(capsys, "show", "gone") and "rex" in refused(capsys, "show", "gone")
