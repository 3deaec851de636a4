"""Jobs: whatever dies, nothing is started twice, nothing is lost, and no state is a lie.

The child process is a stand-in that obeys the contract of a run folder and does what files in it tell it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from processes import forked, until
from stand_in_child import SAVED, STEPPED, child_command, put, starts

from atelier.app.jobs import child_process as children
from atelier.app.jobs import jobs, worker, worker_process
from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.child_process import exit_event, training_command, watch_child
from atelier.app.jobs.jobs import cancel, find_run, list_runs, new_run, resume, run_status, submit, worker_alive
from atelier.app.jobs.queue import open_queue
from atelier.app.jobs.worker import reconcile, run_worker
from atelier.app.jobs.worker_process import stop_orphaned_worker, worker_for_server
from atelier.app.store.home import Home, HomeError, open_home
from atelier.training.config.events import Failed, Finished, Interrupted, Resumed, Stepped, Stopped
from atelier.training.config.run_folder import STALE_SECONDS, RunFolder
from atelier.training.config.train_config import TrainConfig

# Notes its start, works until told how to end: the files `finish`, `crash` and `quit` in the run folder, or `cancel`.
CHILD = """
(folder / "heartbeat").touch()
say("resumed", step=1) if resumed else say("preparing", what="Starting")
say("stepped", step=1 + resumed, of=9, loss=0.5, prior_loss=0.0, lr=0.1, seconds=0.01)
say("saved", step=1 + resumed, path="checkpoints/step-000001")
while True:
    (folder / "heartbeat").touch()
    if (folder / "crash").exists():
        (folder / "crash").unlink()
        sys.exit("line one\\nValueError: the pictures are made of cheese")
    if (folder / "quit").exists():
        sys.exit(3)
    if (folder / "control" / "cancel").exists():
        say("stopped", step=1, reason="Cancelled.")
        break
    if (folder / "finish").exists():
        say("finished", step=9, path="fox.safetensors", seconds=1.0)
        break
    time.sleep(0.02)
(folder / "heartbeat").unlink()
"""
@pytest.fixture
def home(own_home) -> Home:
    return open_home(own_home)


@pytest.fixture
def start_worker(home: Home, tmp_path: Path) -> Iterator[Callable[[], BaseProcess]]:
    """Starts workers; ends them and every child they left behind when the test is over."""
    command, started = child_command(tmp_path, CHILD), []

    def start() -> BaseProcess:
        started.append(forked(run_worker, home, command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()
    for folder in home.runs.iterdir():   # for a child so young that it has not said its number
        RunFolder(folder).send_command("cancel")
    for path in home.runs.glob("*/starts"):
        for pid in pids(RunFolder(path.parent)):
            end(pid)


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def config(name: str = "fox") -> TrainConfig:
    return TrainConfig(name=name, steps=9)


def test_only_so_many_runs_may_wait(home, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_WAITING", 2)
    for name in ("a", "b"):
        new_run(home, config(name))
    with pytest.raises(HomeError, match="2 runs are waiting, which is the limit"):
        new_run(home, config("c"))
    assert len(list(home.runs.iterdir())) == 2


def test_a_run_needs_room_on_the_disk_before_it_starts(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99_000_000))
    with pytest.raises(HomeError, match=r"A run can't start\. Only 99 MB are free .* and 100 MB are needed"):
        submit(home, config())
    assert list(home.runs.iterdir()) == []


def pids(run: RunFolder) -> list[int]:
    return [start[0] for start in starts(run)]


def state(home: Home, run: RunFolder) -> str:
    return run_status(home, run.id).state


def training(home: Home, run: RunFolder) -> Callable[[], bool]:
    return lambda: state(home, run) == "training"


def grow_cold(run: RunFolder) -> None:
    """Let the heartbeat stop long ago."""
    past = time.time() - STALE_SECONDS - 1
    os.utime(run.path / "heartbeat", (past, past))


# --- the queue and the folders, without a worker

def test_what_is_submitted_waits_in_order(home):
    runs = [submit(home, config(name)) for name in ("a", "b", "c")]
    shown = list_runs(home)
    assert [run.id for run in shown] == [run.id for run in reversed(runs)]
    assert [run.message for run in reversed(shown)] == [f"Number {n} in the queue." for n in (1, 2, 3)]
    assert {run.state for run in shown} == {"queued"}
    assert runs[0].config() == config("a")


def test_messages_are_plain_text_that_can_run_nothing(home):
    run = submit(home, config())
    with open_queue(home) as queue:
        (message,) = queue.huey.storage.enqueued_items()
    assert run.id in json.loads(message)[6]


def test_a_name_that_an_adapter_or_a_waiting_run_has_is_refused(home):
    (home.adapters / "fox.safetensors").write_bytes(b"")
    with pytest.raises(HomeError, match="such as 'fox-2'"):
        submit(home, config("fox"))
    submit(home, config("wolf"))
    with pytest.raises(HomeError, match="such as 'wolf-2'"):
        submit(home, config("wolf"))
    with pytest.raises(HomeError, match="letters, digits"):
        submit(home, config("../wolf"))
    assert len(list_runs(home)) == 1 and len(list(home.runs.iterdir())) == 1


def test_a_run_that_is_over_gives_its_name_free(home):
    put(submit(home, config()), Failed("no"))
    submit(home, config())


def test_a_new_run_can_be_alive_from_its_first_moment(home):
    run = new_run(home, config(), started=True)
    assert run.is_alive() and state(home, run) == "preparing"
    assert not new_run(home, config("b")).is_alive()


def test_cancelling_takes_a_run_out_of_the_queue(home):
    first, second = submit(home, config("a")), submit(home, config("b"))
    cancel(home, first.id)
    assert state(home, first) == "stopped"
    assert run_status(home, second.id).message == "Number 1 in the queue."
    cancel(home, first.id)   # again: nothing more happens
    assert [type(event) for _, event in first.events()] == [Stopped]


def test_cancelling_a_run_at_work_is_left_to_its_process(home):
    run = submit(home, config())
    put(run, STEPPED, alive=True)
    cancel(home, run.id)
    assert run.take_command("cancel") is not None and state(home, run) == "training"


def test_a_run_can_be_resumed_after_any_end_but_success(home):
    for n, last in enumerate((Stopped(1, "asked"), Failed("no"), Interrupted("killed"), None)):
        run = new_run(home, config(f"fox{n}"))
        put(run, STEPPED, SAVED, *([last] if last else []))
        run.send_command("cancel")   # meant for the process that is gone
        assert run_status(home, run.id).is_over
        assert resume(home, run.id) == run
        assert state(home, run) == "queued" and run.take_command("cancel") is None
        resume(home, run.id)   # a second press changes nothing
    with open_queue(home) as queue:
        assert list(queue.waiting()) == [run.id for run in reversed(list_runs(home))]
    done = new_run(home, config("done"))
    put(done, Finished(9, "x", 1.0))
    with pytest.raises(HomeError, match="is done"):
        resume(home, done.id)


def test_a_resumed_run_that_waits_can_be_cancelled(home):
    run = new_run(home, config())
    put(run, STEPPED, SAVED, Interrupted("killed"))
    resume(home, run.id)
    cancel(home, run.id)
    assert state(home, run) == "stopped"


def test_a_run_without_a_heartbeat_is_interrupted(home):
    run = new_run(home, config())
    put(run, STEPPED, alive=True)
    assert state(home, run) == "training"
    grow_cold(run)
    assert state(home, run) == "interrupted"
    (run.path / "heartbeat").touch()
    assert state(home, run) == "training"


def test_a_run_that_rests_is_read_again_when_something_happened(home):
    run = new_run(home, config())
    put(run, STEPPED, Failed("one"))
    assert run_status(home, run.id).message == "one"
    put(run, Resumed(1), Failed("two"))
    assert run_status(home, run.id).message == "two"


def test_a_damaged_run_is_shown_and_hides_no_other(home):
    good = submit(home, config("good"))
    bad = new_run(home, config("bad"))
    (bad.path / "recipe.toml").write_text("steps = 'many'")
    shown = {run.id: run for run in list_runs(home)}
    assert shown[bad.id].state == "failed" and "can't be read" in shown[bad.id].message
    assert shown[good.id].state == "queued"


@pytest.mark.parametrize("id", ["", ".", "..", "../adapters", "/etc", "none", "a\0b"])
def test_an_id_of_nothing_is_refused(home, id):
    submit(home, config())
    for action in (find_run, run_status, resume, cancel):
        with pytest.raises(HomeError, match="does not exist"):
            action(home, id)


def spoil(path: Path, way: str) -> None:
    """Damage a queue in one of several ways."""
    if way == "no database":
        path.write_text("this is no database at all" * 100)
    elif way == "bytes":
        content = bytearray(path.read_bytes())
        content[100:3000] = bytes(2900)
        path.write_bytes(content)
    else:
        statement = {"message": "UPDATE task SET data = '[]'", "no message": "UPDATE task SET data = x'ff'",
                     "another program": "DROP TABLE task", "columns": "CREATE TABLE task (a)"}[way]   # fmt: skip
        with closing(sqlite3.connect(path)) as database, database:
            if way == "columns":
                database.execute("DROP TABLE task")
            database.execute(statement)


@pytest.mark.parametrize("way", ["no database", "bytes", "message", "no message", "another program", "columns"])
def test_a_damaged_queue_is_made_anew_and_the_worker_finds_what_waits(home, way):
    first = submit(home, config("a"))
    spoil(home.state / "queue.sqlite", way)
    assert [run.state for run in list_runs(home)] == ["queued"]   # as its folder says
    second = submit(home, config("b"))
    with open_queue(home) as queue:
        reconcile(home, queue)
        assert sorted(queue.waiting()) == sorted([first.id, second.id])


def test_a_queue_that_can_not_be_written_is_named_with_the_cure(home):
    (home.state / "queue.sqlite").mkdir()
    with pytest.raises(HomeError, match=r"queue\.sqlite can't be used.*delete this file"):
        submit(home, config())
    assert list(home.runs.iterdir()) == []   # nothing half made stays behind


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("this is no database at all" * 100)])
def test_a_worker_goes_on_when_its_queue_is_deleted_or_damaged(home, start_worker, damage):
    running = submit(home, config("a"))
    start_worker()
    until(training(home, running))
    damage(home.state / "queue.sqlite")
    waiting = submit(home, config("b"))
    (running.path / "finish").touch()
    until(training(home, waiting))
    (waiting.path / "finish").touch()
    until(lambda: state(home, waiting) == "done")
    assert state(home, running) == "done"
    assert [len(starts(run)) for run in (running, waiting)] == [1, 1]


def test_the_child_is_the_training_module_of_this_python(home):
    run = RunFolder(home.runs / "x")
    command = [sys.executable, "-m", "atelier.training.runs.run", str(run.path), "--adapters", str(home.adapters)]
    assert training_command(run, home.adapters, False) == command
    assert training_command(run, home.adapters, True) == [*command, "--resume"]


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [(-9, Interrupted, "memory ran out"), (137, Interrupted, "memory ran out"), (-15, Interrupted, "SIGTERM"),
     (139, Interrupted, "SIGSEGV"), (255, Interrupted, "127"), (3, Interrupted, "saved its state"),
     (1, Failed, "RuntimeError: too big"), (0, Failed, "RuntimeError: too big")],
)  # fmt: skip
def test_an_end_without_a_word_is_explained(tmp_path, code, kind, words):
    (tmp_path / "log.txt").write_bytes(b"a start\n" * 2000 + b"\xff\nRuntimeError: too big\n\n  \n")
    word = exit_event(code, tmp_path / "log.txt")
    assert type(word) is kind and words in word.message
    (tmp_path / "log.txt").write_text("")
    assert exit_event(1, tmp_path / "log.txt") == Failed("The training process ended with exit code 1.")


def test_a_new_worker_brings_the_queue_in_line_with_the_folders(home):
    waits, lives, lost, cut = (new_run(home, config(name)) for name in ("waits", "lives", "lost", "cut"))
    put(lives, STEPPED, alive=True)
    put(cut, STEPPED, SAVED)
    for n, last in enumerate((Stopped(1, "asked"), Failed("no"), Finished(9, "x", 1.0))):
        put(new_run(home, config(f"ended{n}")), STEPPED, SAVED, last)
    with open_queue(home) as queue:
        queue.add(waits, Action.START)
        reconcile(home, queue)
        expected = {lives.id: Action.WATCH, cut.id: Action.RESUME, waits.id: Action.START, lost.id: Action.START}
        assert list(queue.waiting().items()) == list(expected.items())
        queue.remove(cut)
        reconcile(home, queue)   # nothing goes on by itself a second time
        assert cut.id not in queue.waiting()


@pytest.mark.parametrize("cold", [True, False])
def test_a_watched_child_without_a_last_word_is_interrupted(home, monkeypatch, cold):
    for name in ("GRACE_SECONDS", "STALE_SECONDS", "WATCH_SECONDS"):
        monkeypatch.setattr(children, name, 0.05)
    run = new_run(home, config())
    put(run, STEPPED, alive=cold)
    if cold:
        grow_cold(run)
    watch_child(run)
    assert [type(event) for _, event in run.events()] == [Stepped, Interrupted]


def test_a_watched_child_may_be_slow(home, monkeypatch):
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.0)
    run, looks = new_run(home, config()), []
    put(run, STEPPED, alive=True)
    grow_cold(run)

    def sleep(_seconds: float) -> None:
        looks.append(run.is_alive())
        if len(looks) == 2:
            (run.path / "heartbeat").touch()   # there it is again
        if len(looks) == 4:
            run.append(Finished(9, "x", 1.0))
            (run.path / "heartbeat").unlink()

    monkeypatch.setattr(children.time, "sleep", sleep)
    watch_child(run)
    assert looks == [False, False, True, True]
    assert [type(event) for _, event in run.events()] == [Stepped, Finished]


# --- with a worker

def test_jobs_run_one_after_the_other_and_only_once(home, start_worker):
    first, second = submit(home, config("a")), submit(home, config("b"))
    worker = start_worker()
    until(training(home, first))
    assert worker_alive(home)
    assert starts(second) == [] and run_status(home, second.id).message == "Number 1 in the queue."
    (first.path / "finish").touch()
    until(training(home, second))
    assert state(home, first) == "done"
    (second.path / "finish").touch()
    until(lambda: state(home, second) == "done")
    assert [start[2:] for start in starts(first)] == [(False, True)]   # not resumed, in a session of its own
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0 and not worker_alive(home)
    with open_queue(home) as queue:   # nothing is left behind
        assert queue.waiting() == {} and not queue.huey.all_results()


def test_a_second_worker_is_refused(home, start_worker):
    start_worker()
    until(lambda: worker_alive(home))
    command = [sys.executable, "-m", "atelier.app.cli.main", "worker", "--home", str(home.path)]
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1 and second.stderr.endswith("and one is enough.\n")
    assert "Traceback" not in second.stderr and worker_alive(home)


def test_a_crashed_server_leaves_its_worker_to_the_next_one(home):
    def crash() -> None:
        with worker_for_server(home):
            os.kill(os.getpid(), signal.SIGKILL)

    forked(crash).join()
    until((home.state / "worker.json").exists)   # by then it holds its lock
    with worker_for_server(home):
        assert worker_alive(home)
    assert not worker_alive(home)


def test_a_worker_that_dies_is_replaced_while_the_server_runs(home, monkeypatch):
    monkeypatch.setattr(worker_process, "RESTART_SECONDS", 0.2)
    record = home.state / "worker.json"
    with worker_for_server(home):
        until(record.exists)
        first = json.loads(record.read_text())[0][0]
        end(first)
        until(lambda: json.loads(record.read_text())[0][0] != first)
        until(lambda: worker_alive(home))
    assert not worker_alive(home)


def test_a_run_whose_server_was_killed_before_it_was_queued_is_found(home, start_worker, monkeypatch):
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.05)
    start_worker()
    until(lambda: worker_alive(home))
    run = new_run(home, config())   # as submit() does first
    until(training(home, run))
    (run.path / "finish").touch()
    until(lambda: state(home, run) == "done")
    assert len(starts(run)) == 1


def test_a_worker_whose_server_was_killed_while_it_started_is_ended_by_the_next_one(home):
    """The server had no time to write anything down."""
    def crash() -> None:
        worker_process._start(home)
        os.kill(os.getpid(), signal.SIGKILL)

    forked(crash).join()
    until(lambda: worker_alive(home))
    until((home.state / "worker.json").exists)
    with worker_for_server(home):
        assert worker_alive(home)
    assert not worker_alive(home)


def test_a_server_ends_nobody_elses_worker(home, start_worker):
    start_worker()   # as a person does it
    until(lambda: worker_alive(home))
    with worker_for_server(home):
        pass
    assert worker_alive(home)


@pytest.mark.parametrize(("later", "served"), [(0, True), (1, False)])
def test_a_worker_lives_while_its_server_does_and_a_number_is_not_enough_to_know_it(home, later, served):
    other = subprocess.Popen(["sleep", "60"])
    started, me = psutil.Process(other.pid).create_time(), psutil.Process()
    server = [me.pid, me.create_time()] if served else [2**30, 0.0]   # more than any process has
    (home.state / "worker.json").write_text(json.dumps([[other.pid, started + later], server]))
    stop_orphaned_worker(home)
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_child_outlives_its_worker_and_the_next_one_adopts_it(home, start_worker, number):
    first, second = submit(home, config("a")), submit(home, config("b"))
    worker = start_worker()
    until(training(home, first))
    os.kill(worker.pid, number)
    worker.join()
    start_worker()
    until(lambda: worker_alive(home))
    (first.path / "finish").touch()
    until(training(home, second))
    assert state(home, first) == "done"
    assert first.events()[-1][0] < second.events()[0][0]   # times: one after the other
    (second.path / "finish").touch()
    until(lambda: state(home, second) == "done")
    assert first.events()[-1][1] == Finished(9, "fox.safetensors", 1.0) and len(starts(first)) == 1


def test_a_killed_child_is_interrupted_with_a_reason_and_can_be_resumed(home, start_worker):
    run = submit(home, config())
    start_worker()
    until(training(home, run))
    end(pids(run)[0])
    until(lambda: state(home, run) == "interrupted")
    assert "memory" in run_status(home, run.id).message
    resume(home, run.id)
    until(training(home, run))
    assert [start[2] for start in starts(run)] == [False, True]
    assert run_status(home, run.id).step == 2
    (run.path / "finish").touch()
    until(lambda: state(home, run) == "done")


def test_a_crashed_child_is_explained_by_its_last_line(home, start_worker):
    run = submit(home, config())
    start_worker()
    until(training(home, run))
    (run.path / "crash").touch()
    until(lambda: state(home, run) == "failed")
    assert run_status(home, run.id).message == (
        "The training process failed: ValueError: the pictures are made of cheese"
    )
    assert "line one" in (run.path / "log.txt").read_text()


def test_a_child_that_can_not_be_started_is_explained(home, start_worker, tmp_path):
    run = submit(home, config())
    (tmp_path / "child.py").unlink()
    start_worker()
    until(lambda: state(home, run) == "failed")
    assert "child.py" in run_status(home, run.id).message


def test_a_run_is_cancelled_by_its_child(home, start_worker):
    run = submit(home, config())
    start_worker()
    until(training(home, run))
    cancel(home, run.id)
    until(lambda: state(home, run) == "stopped")
    assert run_status(home, run.id).message == "Cancelled."


def test_a_cancelled_run_is_passed_over(home, start_worker):
    first, second = submit(home, config("a")), submit(home, config("b"))
    cancel(home, first.id)
    start_worker()
    until(training(home, second))
    assert starts(first) == [] and state(home, first) == "stopped"


def test_what_waits_survives_the_loss_of_the_queue(home, start_worker):
    runs = [submit(home, config(name)) for name in ("a", "b")]
    for path in home.state.glob("queue.sqlite*"):
        path.unlink()
    assert {state(home, run) for run in runs} == {"queued"}
    for run in runs:
        (run.path / "finish").touch()
    start_worker()
    until(lambda: all(state(home, run) == "done" for run in runs))
    assert [len(starts(run)) for run in runs] == [1, 1]
    assert starts(runs[0])[0][0] != starts(runs[1])[0][0]


def test_after_a_power_cut_a_run_goes_on_by_itself_but_only_once(home, start_worker):
    run, lost = new_run(home, config()), new_run(home, config("lost"))
    put(run, STEPPED, SAVED, alive=True)
    put(lost, STEPPED, alive=True)   # no checkpoint: a person decides
    for old in (run, lost):
        grow_cold(old)
    worker = start_worker()
    until(lambda: len(starts(run)) == 1 and state(home, run) == "training")
    assert starts(run)[0][2]
    worker.kill()
    worker.join()
    end(pids(run)[0])
    grow_cold(run)
    assert state(home, run) == "interrupted"
    other = submit(home, config("other"))
    start_worker()
    until(training(home, other))
    assert len(starts(run)) == 1 and state(home, run) == "interrupted"
    assert starts(lost) == [] and state(home, lost) == "interrupted"
    resume(home, run.id)   # the person decides
    (other.path / "finish").touch()
    until(lambda: len(starts(run)) == 2)


def test_what_ended_before_is_left_alone_by_a_new_worker(home, start_worker):
    ends = (Stopped(1, "asked"), Failed("no"), Finished(9, "x", 1.0))
    runs = [new_run(home, config(f"fox{n}")) for n in range(len(ends))]
    for run, last in zip(runs, ends, strict=True):
        put(run, STEPPED, SAVED, last)
    other = submit(home, config("other"))
    start_worker()
    until(training(home, other))
    assert [starts(run) for run in runs] == [[], [], []]


def test_a_message_that_came_twice_starts_a_run_once(home, start_worker):
    run = submit(home, config())
    with open_queue(home) as queue:
        queue.add(run, Action.START)
    other = submit(home, config("other"))
    (run.path / "finish").touch()
    start_worker()
    until(training(home, other))
    assert len(starts(run)) == 1 and state(home, run) == "done"


def test_a_damaged_run_does_not_stop_the_worker(home, start_worker):
    bad = new_run(home, config("bad"))
    put(bad, STEPPED, SAVED)
    (bad.path / "recipe.toml").write_text("steps = 'many'")
    (bad.path / "events.jsonl").write_bytes(b"\xff\xfe\n")
    good = submit(home, config("good"))
    start_worker()
    until(training(home, good))


def test_listing_does_not_read_what_rests_twice(home, monkeypatch):
    run = new_run(home, config())
    put(run, STEPPED, Failed("no"))
    list_runs(home)
    monkeypatch.setattr(jobs, "status", lambda run: pytest.fail("read again"))
    assert [shown.state for shown in list_runs(home)] == ["failed"]
