"""Several workers on one home: every run is done once, whatever happens to one of them.

Workers are processes; the child is a stand-in that obeys the contract of a run folder. A lost machine is a worker that
is killed together with its child.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from PIL import Image
from processes import forked, until
from robustness import record
from stand_in_child import SAVED, STEPPED, child_command, put, starts

from atelier.app.jobs import child_process, redis_queue, shared_worker
from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.grid_folders import job_folder
from atelier.app.jobs.grid_jobs import make_job_folder
from atelier.app.jobs.jobs import auto_resume_marker, list_runs, submit
from atelier.app.jobs.redis_queue import RedisQueue
from atelier.app.jobs.shared_worker import LOST, Heartbeats, carry_out, find_lost_runs
from atelier.app.jobs.worker import run_worker
from atelier.app.services.grid import new_grid, parse_axis
from atelier.app.store.gallery import save_picture
from atelier.app.store.home import Home
from atelier.training.config import run_folder
from atelier.training.config.events import (
    Event,
    Failed,
    Finished,
    Interrupted,
    Preparing,
    Resumed,
    Saved,
    Stepped,
    Stopped,
)
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig

# Takes five steps from its checkpoint on, each as long as a file `slow` lies in the folder of runs.
CHILD = """
saved = folder / "checkpoints" / "step"
first = int(saved.read_text()) if resumed and saved.exists() else 0
say("resumed", step=first) if first else say("preparing", what="Starting")
for step in range(first + 1, 6):
    (folder / "heartbeat").touch()
    say("stepped", step=step, of=5, loss=0.5, prior_loss=0.0, lr=0.1, seconds=0.01)
    saved.write_text(str(step))
    say("saved", step=step, path="checkpoints/step")
    while step == 2 and (folder.parent / "slow").exists():
        (folder / "heartbeat").touch()
        time.sleep(0.02)
say("finished", step=5, path="fox.safetensors", seconds=1.0)
(folder / "heartbeat").unlink(missing_ok=True)
"""


GRID_RECIPE = {"prompt": "a fox", "negative": "", "seed": 7, "steps": 2, "guidance": 3.0, "base": "embedded",
               "width": 64, "height": 64, "adapters": []}   # fmt: skip


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds in place of half minutes; workers inherit them."""
    for module, name, seconds in (
        (redis_queue, "LEASE_SECONDS", 3.0), (redis_queue, "RENEW_SECONDS", 0.3), (shared_worker, "STALE_SECONDS", 3.0),
        (shared_worker, "_LOOK_SECONDS", 0.2), (run_folder, "STALE_SECONDS", 3.0),
        (child_process, "WATCH_SECONDS", 0.1), (run_folder, "HEARTBEAT_SECONDS", 0.2),
    ):   # fmt: skip
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def start_worker(home: Home, short_waits: None, tmp_path: Path) -> Iterator[Callable[[], BaseProcess]]:
    command, started = child_command(tmp_path, CHILD), []

    def start() -> BaseProcess:
        started.append(forked(run_worker, home, command))
        return started[-1]

    yield start
    for worker in started:
        lose(worker)


def lose(worker: BaseProcess) -> None:
    """Kill a worker and everything that it started, as when its machine is gone."""
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    worker.join()


def finished(run: RunFolder) -> int:
    return sum(isinstance(event, Finished) for _, event in run.events())


def new_run(home: Home, name: str) -> RunFolder:
    return submit(home, TrainConfig(name=name, steps=5))


# --- grids

def test_a_grid_of_a_lost_machine_goes_on_elsewhere_once(home, queue, short_waits, monkeypatch):
    monkeypatch.setattr(shared_worker, "STALE_SECONDS", -1.0)   # every heartbeat has stopped
    picture = save_picture(home, Image.new("RGB", (8, 8)), GRID_RECIPE).stem
    grid = new_grid(home, picture, [parse_axis("seed", "1, 2")])
    run = make_job_folder(home, grid.id)
    find_lost_runs(home, queue, Heartbeats())
    assert queue.waiting() == {run.id: Action.START}, "it waited in a queue that was lost"
    queue.remove(run)
    run.append(Preparing("Loading"))
    find_lost_runs(home, queue, Heartbeats())
    assert queue.waiting() == {run.id: Action.RECOVER}
    drawn: list[str] = []
    carry_out(run, Action.RECOVER, queue, lambda each, _: drawn.append(each.id))
    assert drawn == [run.id] and run.events()[-1][1] == Interrupted(LOST)
    queue.remove(run)
    find_lost_runs(home, queue, Heartbeats())
    assert queue.waiting() == {}, "the second time a person decides"


def test_a_grid_needs_the_card_that_its_base_model_needs(home, monkeypatch):
    picture = save_picture(home, Image.new("RGB", (8, 8)), GRID_RECIPE).stem
    run = job_folder(home, new_grid(home, picture, [parse_axis("seed", "1")]).id)
    assert not redis_queue.needs_card(run), "the embedded base"
    monkeypatch.setattr(redis_queue, "_CARD_CHANNELS", 8)
    assert redis_queue.needs_card(run)
    (home.grids / f"{run.id.removeprefix('grid-')}.json").write_text("[]")
    assert not redis_queue.needs_card(run)


# --- with workers

def test_two_workers_share_the_jobs_and_the_job_of_a_lost_one_goes_on_elsewhere_once(home, start_worker):
    runs = [new_run(home, f"fox-{number}") for number in range(5)]
    (home.runs / "slow").touch()
    workers = [start_worker(), start_worker()]
    until(lambda: sum(len(run.events()) >= 5 for run in runs) == 2)   # both are at work
    lost = next(run for run in runs if starts(run) and starts(run)[0][1] == workers[0].pid)
    lose(workers[0])
    (home.runs / "slow").unlink()
    until(lambda: all(finished(run) for run in runs))
    assert [finished(run) for run in runs] == [1] * 5
    assert [len(starts(run)) for run in runs] == [1 + (run == lost) for run in runs], "nothing is started twice"
    assert {start[1] for run in runs for start in starts(run)} == {worker.pid for worker in workers}
    events = [event for _, event in lost.events()]
    assert Interrupted(LOST) in events
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps == [1, 2, 3, 4, 5], "it went on from its checkpoint"
    assert {state.state for state in list_runs(home)} == {"done"}


@pytest.mark.slow
def test_three_workers_do_thirty_jobs_once_each_although_one_is_killed(home, start_worker):
    runs = [new_run(home, f"fox-{number}") for number in range(30)]
    started = time.monotonic()
    (home.runs / "slow").touch()
    workers = [start_worker() for _ in range(3)]
    until(lambda: sum(len(run.events()) >= 5 for run in runs) == 3, 120)
    lose(workers[0])
    (home.runs / "slow").unlink()
    until(lambda: all(finished(run) for run in runs), 280)
    again = [run for run in runs if len(starts(run)) > 1]
    by_worker = [sum(start[1] == worker.pid for run in runs for start in starts(run)) for worker in workers]
    record("Redis: 30 jobs, 3 workers, one killed with its job", [{
        "jobs done": sum(finished(run) > 0 for run in runs), "done twice": sum(finished(run) > 1 for run in runs),
        "went on elsewhere": len(again), "starts by each worker": ", ".join(map(str, by_worker)),
        "seconds": f"{time.monotonic() - started:.0f}"}])   # fmt: skip
    assert [finished(run) for run in runs] == [1] * 30
    assert [len(starts(run)) for run in again] == [2] and by_worker[0] == 1
    assert [event.step for _, event in again[0].events() if isinstance(event, Stepped)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_real_training_goes_on_elsewhere_from_its_checkpoint(home, short_waits, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "STALE_SECONDS", 15.0)   # the training's own process beats every two seconds
    monkeypatch.setattr(shared_worker, "STALE_SECONDS", 15.0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        Image.effect_noise((64, 64), 50 + number).convert("RGB").save(pictures / f"{number}.png")
    run = submit(home, TrainConfig(name="fox", pictures=str(pictures), resolution=64, steps=40, checkpoint_every=4,
                                   preview_every=0))   # fmt: skip
    for seen in (Saved, Finished):
        monkeypatch.setenv("TMPDIR", str(tmp_path / seen.__name__))   # a machine has its own locks on devices
        (tmp_path / seen.__name__).mkdir()
        worker = forked(run_worker, home)
        until(lambda seen=seen: any(isinstance(event, seen | Failed) for _, event in run.events()), 600)
        lose(worker)
    events = [event for _, event in run.events()]
    assert finished(run) == 1 and events.count(Interrupted(LOST)) == 1
    assert next(event.step for event in events if isinstance(event, Resumed)) >= 4
    assert [path.name for path in home.adapters.glob("*.safetensors")] == ["fox.safetensors"]


def test_a_child_whose_worker_alone_was_killed_goes_on_and_is_not_doubled(home, start_worker):
    run = new_run(home, "fox")
    (home.runs / "slow").touch()
    worker = start_worker()
    until(lambda: len(run.events()) >= 5)
    worker.kill()
    worker.join()
    other, last = start_worker(), new_run(home, "other")
    until(lambda: len(last.events()) >= 5)   # the other worker has looked around
    time.sleep(2 * redis_queue.LEASE_SECONDS)   # the lease is over, and the heartbeat goes on
    (home.runs / "slow").unlink()
    until(lambda: finished(run) and finished(last))
    assert (finished(run), len(starts(run)), len(starts(last))) == (1, 1, 1)
    assert other.is_alive()


# --- without workers

def test_what_waits_or_was_lost_comes_into_the_queue(home: Home, queue: RedisQueue) -> None:
    waits, lost, early, leased, alive = (new_run(home, name) for name in ("waits", "lost", "early", "leased", "alive"))
    over = [put(new_run(home, f"over-{n}"), STEPPED, SAVED, last)
            for n, last in enumerate((Stopped(1, "asked"), Failed("no"), Finished(9, "x", 1.0)))]   # fmt: skip
    for run in (waits, lost, early, leased, alive, *over):
        queue.remove(run)
        queue.huey.storage.flush_queue()
    for run in (lost, leased, alive):
        put(run, STEPPED, SAVED)
    put(early, Preparing("Starting"))
    (alive.path / "heartbeat").touch()
    with queue.lease(leased):
        find_lost_runs(home, queue, Heartbeats())
        expected = {lost.id: Action.RECOVER, early.id: Action.RECOVER, waits.id: Action.START}
        assert queue.waiting() == expected, "one without a checkpoint, too"
        find_lost_runs(home, queue, Heartbeats())
        assert queue.huey.pending_count() == 3, "nothing twice"


def test_a_lost_run_is_recovered_once_and_then_left_to_a_person(home: Home, queue: RedisQueue) -> None:
    run, trained = put(new_run(home, "fox"), STEPPED, SAVED), []
    queue.huey.storage.flush_queue()

    def train(run: RunFolder, lost: threading.Event) -> None:
        trained.append(queue.is_leased(run))   # and dies with its machine

    for _ in range(2):
        carry_out(run, Action.RECOVER, queue, train)
    assert trained == [True]
    assert [event for _, event in run.events()][2:] == [Interrupted(LOST)]
    find_lost_runs(home, queue, Heartbeats())
    assert queue.waiting() == {}
    auto_resume_marker(run).unlink()   # a person resumes it
    carry_out(run, Action.RESUME, queue, train)
    assert trained == [True, True] and not auto_resume_marker(run).exists()


@pytest.mark.parametrize(("action", "last"), [
    (Action.START, STEPPED), (Action.START, Finished(9, "x", 1.0)), (Action.RESUME, Finished(9, "x", 1.0)),
    (Action.RECOVER, Finished(9, "x", 1.0)), (Action.RECOVER, Stopped(1, "asked")), (Action.RECOVER, Failed("no")),
])   # fmt: skip
def test_a_message_that_came_too_late_does_nothing(home: Home, queue: RedisQueue, action: Action, last: Event) -> None:
    run = put(new_run(home, "fox"), last)
    carry_out(run, action, queue, lambda *_: pytest.fail("started"))
    assert len(run.events()) == 1


def test_a_run_that_somebody_has_is_not_started(home: Home, queue: RedisQueue) -> None:
    run = new_run(home, "fox")
    with queue.lease(run):
        carry_out(run, Action.START, queue, lambda *_: pytest.fail("started"))
    (run.path / "heartbeat").touch()
    carry_out(run, Action.START, queue, lambda *_: pytest.fail("started"))


def test_heartbeats_are_compared_with_themselves_and_no_clock(home: Home) -> None:
    run, now = new_run(home, "fox"), [0.0]
    heartbeats = Heartbeats(lambda: now[0])
    assert heartbeats.has_stopped(run), "there is none"
    seen = []
    for beat in (1, 2, 3, 3, 3):   # by a clock that is decades behind
        (run.path / "heartbeat").touch()
        os.utime(run.path / "heartbeat", (beat, beat))
        seen.append(heartbeats.has_stopped(run))
        now[0] += 20
    assert seen == [False, False, False, False, True]


def test_a_child_is_killed_when_another_machine_has_its_run(home: Home, short_waits: None) -> None:
    run, lost = new_run(home, "fox"), threading.Event()
    threading.Timer(0.5, lost.set).start()
    sleeping = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    child_process.run_child(run, home.adapters, lambda *_: sleeping, lost=lost)
    assert [type(event) for _, event in run.events()] == [Preparing], "the other machine writes how it ends"
