"""Grids as jobs: in the queue beside trainings, cancelled between two steps, resumed with the next cell."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from atelier.app.cli.main import main
from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.grid_folders import is_grid, job_folder, queued_folder
from atelier.app.jobs.grid_jobs import GridJob, cancel_grid, grid_command, grid_job, make_job_folder, submit_grid
from atelier.app.jobs.jobs import list_runs, queued_runs
from atelier.app.jobs.queue import open_queue
from atelier.app.jobs.worker import reconcile
from atelier.app.services import grid_process
from atelier.app.services import grid_progress as grid_progress_module
from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.services.grid import Grid, new_grid, parse_axis, read_grid
from atelier.app.services.grid_process import draw_grid_job
from atelier.app.services.grid_progress import follow_grid
from atelier.app.store.gallery import save_picture
from atelier.app.store.home import Home, open_home
from atelier.training.config.events import Failed, Finished, Interrupted, Preparing, Stopped

RECIPE = {"prompt": "a fox", "negative": "", "seed": 7, "steps": 2, "guidance": 3.0, "sampler": "ddim",
          "prompt_syntax": "plain", "base": "embedded", "family": "embedded", "width": 64, "height": 64,
          "adapters": []}   # fmt: skip


class FakeEngine:
    """Draws one step, in which something can happen."""

    def __init__(self, at_picture: dict[int, Any]) -> None:
        self.at_picture, self.seeds = at_picture, list[int]()

    def draw(self, _base: str, _adapters: Any, request: Any, *_: Any, callbacks: DrawCallbacks, **__: Any):
        if what := self.at_picture.get(request.seed):
            what()
        assert callbacks.on_step
        callbacks.on_step(1, 1)
        self.seeds.append(request.seed)
        return [Image.new("RGB", (8, 8))]


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


@pytest.fixture
def grid(home: Home) -> Grid:
    picture = save_picture(home, Image.new("RGB", (64, 64)), RECIPE).stem
    return new_grid(home, picture, [parse_axis("seed", "1, 2, 3")])


def draw(home: Home, grid: Grid, engine: FakeEngine) -> GridJob:
    """What the child process does."""
    run = job_folder(home, grid.id)
    run.append(draw_grid_job(home, run, cast(Engine, engine)))
    with open_queue(home) as queue:
        queue.remove(run)   # as the worker has taken it
    return grid_job(home, grid.id)


def test_a_grid_waits_in_the_queue_and_is_over_when_it_is_drawn(home: Home, grid: Grid) -> None:
    assert grid_job(home, grid.id) == GridJob("none")
    submit_grid(home, grid.id)
    submit_grid(home, grid.id)
    [(id, action)] = queued_runs(home).items()
    assert action == Action.START and is_grid(queued_folder(home, id))
    assert queued_folder(home, id).path == job_folder(home, grid.id).path
    assert grid_job(home, grid.id) == GridJob("queued", "Number 1 in the queue.") and list_runs(home) == []
    assert draw(home, grid, FakeEngine({})) == GridJob("done")
    assert read_grid(home, grid.id).is_complete
    assert isinstance(job_folder(home, grid.id).events()[-1][1], Finished)


def test_it_is_cancelled_between_two_steps_and_goes_on_with_the_next_cell(home: Home, grid: Grid) -> None:
    submit_grid(home, grid.id)
    run = job_folder(home, grid.id)
    assert draw(home, grid, FakeEngine({2: lambda: run.send_command("cancel")})).state == "stopped"
    assert [bool(cell.picture) for cell in read_grid(home, grid.id).cells] == [True, False, False]
    submit_grid(home, grid.id)
    assert list(queued_runs(home).values()) == [Action.RESUME]
    engine = FakeEngine({})
    assert draw(home, grid, engine).state == "done" and engine.seeds == [2, 3]


def test_one_that_waits_is_taken_out_of_the_queue(home: Home, grid: Grid) -> None:
    submit_grid(home, grid.id)
    cancel_grid(home, grid.id)
    assert queued_runs(home) == {} and grid_job(home, grid.id).state == "stopped"
    cancel_grid(home, grid.id)
    assert [type(event) for _, event in job_folder(home, grid.id).events()] == [Stopped]


def test_an_error_that_nobody_foresaw_is_told(home: Home, grid: Grid) -> None:
    submit_grid(home, grid.id)
    job = draw(home, grid, FakeEngine({2: lambda: 1 / 0}))
    assert job.state == "failed" and "ZeroDivisionError: division by zero" in job.message
    assert bool(read_grid(home, grid.id).cells[0].picture), "what was drawn stays"
    submit_grid(home, grid.id)
    assert draw(home, grid, FakeEngine({})).state == "done"
    assert isinstance(job_folder(home, grid.id).events()[0][1], Failed)


def test_a_worker_finds_grids_that_wait_or_were_interrupted(home: Home, grid: Grid) -> None:
    submit_grid(home, grid.id)
    run = job_folder(home, grid.id)
    with open_queue(home) as queue:
        queue.remove(run)
        reconcile(home, queue)
        assert queue.waiting() == {run.id: Action.START}
        queue.remove(run)
        run.append(Preparing("Drawing"))
        run.append(Interrupted("It was killed."))
        reconcile(home, queue)
        assert queue.waiting() == {run.id: Action.RESUME}
        queue.remove(run)
        reconcile(home, queue)
        assert queue.waiting() == {}, "the second time a person decides"
    assert grid_job(home, grid.id) == GridJob("interrupted", "It was killed.")


def test_it_is_followed_from_its_place_in_the_queue_to_its_end(
    home: Home, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_progress_module, "_LOOK_SECONDS", 0.0)
    submit_grid(home, grid.id)
    steps = follow_grid(home, grid.id)
    assert next(steps) == (GridJob("queued", "Number 1 in the queue."), 0, 3)
    draw(home, grid, FakeEngine({}))
    assert list(steps) == [(GridJob("done"), 3, 3)]


def test_the_command_line_draws_the_same_grids_and_goes_on_with_them(
    home: Home, grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine = FakeEngine({})
    monkeypatch.setattr(grid_process, "Engine", SimpleNamespace(of_home=lambda _: engine))
    picture = save_picture(home, Image.new("RGB", (64, 64)), RECIPE)
    where = ["--home", str(home.path), "--json"]
    assert main(["grid", str(picture), "--vary", "seed=4,5", "--vary", "steps=2", "--out", str(tmp_path / "a.png"),
                 *where]) == 0   # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert engine.seeds == [4, 5] and [cell["values"] for cell in answer["cells"]] == [["4", "2"], ["5", "2"]]
    with Image.open(tmp_path / "a.png") as labelled:
        assert labelled.width > labelled.height
    assert grid_job(home, answer["grid"]) == GridJob("done")
    engine.at_picture = {2: lambda: job_folder(home, grid.id).send_command("cancel")}
    make_job_folder(home, grid.id).append(Stopped(0, ""))
    assert main(["grid", grid.id, *where]) == 1
    assert "Stopped." in capsys.readouterr().err and grid_job(home, grid.id) == GridJob("stopped")
    engine.at_picture = {}
    assert main(["grid", grid.id, *where]) == 0 and engine.seeds == [4, 5, 1, 2, 3]
    for typed, why in ((["gone", "--vary", "seed=1"], "no longer in the gallery"), ([str(picture), "--vary", "seed"],
                       "needs a setting and its values"), ([str(picture)], "Choose one to three settings")):
        assert main(["grid", *typed, *where]) == 1 and why in capsys.readouterr().err


@pytest.mark.slow
def test_the_process_draws_the_cells_and_is_killed_and_goes_on(home: Home, grid: Grid) -> None:
    submit_grid(home, grid.id)
    run = job_folder(home, grid.id)
    with open_queue(home) as queue:
        queue.remove(run)
    command = grid_command(run, home.adapters, False)
    with (run.path / "log.txt").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while not any(cell.picture for cell in read_grid(home, grid.id).cells):
            assert child.poll() is None and time.monotonic() < deadline, (run.path / "log.txt").read_text()
            time.sleep(0.05)
        child.kill()
        child.wait()
        drawn = [cell.picture for cell in read_grid(home, grid.id).cells]
        assert subprocess.run(command, stdout=log, stderr=log, check=False, timeout=240).returncode == 0
    after = [cell.picture for cell in read_grid(home, grid.id).cells]
    assert all(after) and [one for one in drawn if one] == after[: sum(map(bool, drawn))]
    assert sys.executable == command[0] and grid_job(home, grid.id).state == "done"
