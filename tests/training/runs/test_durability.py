"""Kills, full disks and damaged checkpoints in series. `python -m benchmarks.durability` publishes the same figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaged_checkpoints import run_damage_trials
from full_disk import can_mount, fill_disks, refuse_every_write
from kill_trials import run_kill_trials
from trial_runs import Workshop, make_workshop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("durability"))


def test_killed_runs_end_as_if_nothing_had_been(workshop: Workshop, tmp_path: Path):
    figures = run_kill_trials(workshop, tmp_path, trials=120)   # some come when all is done
    assert figures.faults == []
    assert figures.kills >= 100
    assert (figures.lost, figures.doubled, figures.different) == (0, 0, 0)


def test_a_run_that_is_refused_any_one_write_goes_on_by_itself(workshop: Workshop, tmp_path: Path):
    figures = refuse_every_write(workshop, tmp_path)
    assert figures.faults == []
    assert figures.trials > 40
    assert (figures.tracebacks, figures.different) == (0, 0)
    assert figures.resumed <= 1   # where not even the lock of the run can be made


def test_a_run_on_a_full_disk_goes_on_by_itself_when_there_is_room(workshop: Workshop, tmp_path: Path):
    if not can_mount(tmp_path / "probe"):
        pytest.skip("A small disk can only be made by root, with mount.")
    figures = fill_disks(workshop, tmp_path, trials=15)
    assert figures.faults == []
    assert (figures.alone, figures.tracebacks, figures.different) == (15, 0, 0)


def test_no_damaged_checkpoint_is_trained_on_and_no_good_one_is_passed_over(tmp_path: Path):
    figures = run_damage_trials(tmp_path, trials=1000)
    assert figures.faults == []
    assert min(figures.kinds.values()) >= 20
    assert (figures.wrong, figures.restarts) == (0, 0)
