"""When the measures of a run are a reason to stop, and which step is kept then."""

from __future__ import annotations

import subprocess
import sys

import pytest

from atelier.training.config.events import Measured
from atelier.training.config.train_config import STOP_MEASURES
from atelier.training.loop.health import DRIFTED, MEMORIZED, best_measured, health_lines, stop_advice

ALL = STOP_MEASURES["any"]


def at(step: int, gain: float = 0.3, auc: float = 0.6, drift: float = 0.1) -> Measured:
    return Measured(step, 0.5, gain, auc, drift, [gain] * 4, 1)


def test_a_run_that_still_gains_goes_on():
    assert stop_advice([at(50, 0.2), at(100, 0.3, 0.95), at(150, 0.35, 0.99)], [(50, 1.0), (100, 0.9)], ALL) is None
    assert stop_advice([], [], ALL) is None


def test_memorization_needs_a_high_auc_and_a_lost_gain_twice_in_a_row():
    best = [at(50, 0.2), at(100, 0.4, 0.8)]
    worse = [at(150, 0.2, MEMORIZED), at(200, 0.1, 1.0)]
    advice = stop_advice([*best, *worse], [], ALL)
    assert advice is not None and (advice.measure, advice.best_step) == ("memorization", 100)
    assert "by heart" in advice.reason and "step 100" in advice.reason
    assert stop_advice([*best, worse[0]], [], ALL) is None, "once may be chance"
    assert stop_advice([*best, at(150, 0.2, MEMORIZED - 0.01), worse[1]], [], ALL) is None
    assert stop_advice([*best, at(150, 0.21, 1.0), worse[1]], [], ALL) is None, "more than half is there"


def test_drift_keeps_the_last_step_before_it():
    calm, changed = [at(50, drift=0.1), at(100, drift=0.3)], [at(150, drift=DRIFTED), at(200, drift=2.0)]
    advice = stop_advice([*calm, *changed], [], ALL)
    assert advice is not None and (advice.measure, advice.best_step) == ("drift", 100)
    assert stop_advice([*calm, changed[0]], [], ALL) is None
    advice = stop_advice(changed, [], ALL)
    assert advice is not None and advice.best_step == 150, "the first one, where all are too far"


def test_validation_stops_after_two_risen_losses():
    losses = [(50, 1.0), (100, 0.8), (150, 0.85), (200, 0.9)]
    advice = stop_advice([], losses, ALL)
    assert advice is not None and (advice.measure, advice.best_step) == ("validation", 100)
    assert stop_advice([], losses[:3], ALL) is None
    assert stop_advice([], [*losses[:3], (200, 0.83)], ALL) is None, "less than a twentieth is noise"
    assert stop_advice([], [(50, float("nan")), *losses[1:3]], ALL) is None


@pytest.mark.parametrize("choice", STOP_MEASURES)
def test_only_the_chosen_measures_count(choice):
    losses = [(50, 1.0), (100, 2.0), (150, 2.0)]
    measured = [at(50, 0.4), at(100, 0.1, 1.0, 1.0), at(150, 0.1, 1.0, 1.0)]
    advice = stop_advice(measured, losses, STOP_MEASURES[choice])
    assert (advice.measure if advice else None) == next(iter(STOP_MEASURES[choice]), None)


def test_the_best_measured_is_the_first_of_equals():
    assert best_measured([]) is None
    assert best_measured([at(50, 0.2), at(100, 0.4), at(150, 0.4)]) == at(100, 0.4)


def test_health_is_told_in_sentences():
    assert health_lines([]) == []
    [line] = health_lines([at(50, 0.3)])
    assert line.good and "30 % better" in line.text
    fell = [*health_lines([at(50, 0.4), at(100, 0.1, 0.95, 0.7), at(150, 0.1, 0.95, 0.7)])]
    once = health_lines([at(50, 0.4), at(100, 0.1, 0.95)])
    assert not any("by heart" in line.text for line in once), "that may be chance"
    assert not any(line.good for line in fell)
    assert [word in line.text for line, word in zip(fell, ("step 50", "by heart", "70 %"), strict=True)] == [True] * 3
    assert len(health_lines([at(50, 0.4, 0.99)])) == 1, "others gain nearly as much as the trained ones"
    [line] = health_lines([at(50, 0.0)])
    assert not line.good and "Nothing" in line.text


def test_a_page_reads_it_without_loading_torch():
    code = "import sys, atelier.training.loop.health; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
