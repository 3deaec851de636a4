"""Servers, workers and trainings that are killed at random moments lose no run, and do none of them twice.

``ATELIER_RECORD=1 pytest -m slow -s tests/app/jobs/test_killed_processes.py`` writes what it measured into
docs/robustness.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from process_kill_trials import ProcessKillFigures, run_trial, short_waits
from robustness import record

from atelier.app.store.home import open_home

TRIALS, KILLS = 30, 5   # kills of each trial; some come where there is nobody to kill


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_is_lost_or_doubled_whoever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = ProcessKillFigures()
    short_waits(monkeypatch)
    for number in range(TRIALS):
        (folder := tmp_path / str(number)).mkdir()
        run_trial(open_home(folder / "home"), folder, number, KILLS, figures)
    record("Kills of servers, workers and trainings", [{
        "trials": figures.trials, "runs": figures.runs, **{f"{who} killed": n for who, n in figures.kills.items()},
        "lost": figures.lost, "doubled": figures.doubled, "other results": figures.different,
        "workers left behind": figures.left}])   # fmt: skip
    assert figures.faults == []
    assert sum(figures.kills.values()) >= 100
