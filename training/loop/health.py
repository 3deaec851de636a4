"""The health of a training in words: what its measures say, and when they are a reason to stop. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from atelier.training.config.events import Measured

NOISE_LEVELS = (0.15, 0.35, 0.55, 0.75)   # at which gains are measured, as shares of the schedule
MEMORIZED = 0.9
"""AUC from which on pictures count as learned by heart (docs/training-measures.md)."""
DRIFTED = 0.5
"""Drift from which on other prompts count as changed: half as much as a prompt itself does."""
LOSS_RISE = 1.05   # a validation loss so many times the lowest one counts as risen
GAIN_LOSS = 0.02   # gain on pictures that are not trained on, of which the loss is told
GAIN_SHARE = 0.5   # share of the best gain on them; a training that keeps less of it is stopped
OWN_SHARE = 0.6    # share of the trained pictures' gain that others lack; from there on they are learned by heart
LEAST_GAIN = 0.005   # below it nothing counts as learned
PATIENCE = 2       # measurements in a row that must agree, for one alone may be chance


class Advice(NamedTuple):
    """A reason to stop."""

    measure: str     # memorization, drift or validation
    best_step: int   # the step to keep
    reason: str


def best_measured(measured: Sequence[Measured]) -> Measured | None:
    """The measurement with the largest gain on pictures that are not trained on; None without any."""
    return max(measured, key=lambda one: one.held_out_gain, default=None)


def stop_advice(
    measured: Sequence[Measured], validation: Sequence[tuple[int, float]], measures: Collection[str]
) -> Advice | None:
    """The first reason to stop that the last measurements give; None while more steps may help.

    Args:
        measured: in order of their steps.
        validation: (step, loss) in order of their steps.
        measures: those that count, as STOP_MEASURES has them.
    """
    found = [_memorization(measured), _drift(measured), _validation(validation)]
    return next((advice for advice in found if advice and advice.measure in measures), None)


def _memorization(measured: Sequence[Measured]) -> Advice | None:
    recent, best = measured[-PATIENCE:], best_measured(measured)
    if best is None or len(recent) < PATIENCE:
        return None
    if best.held_out_gain < LEAST_GAIN or not all(
        one.memorization >= MEMORIZED and one.held_out_gain <= GAIN_SHARE * best.held_out_gain for one in recent
    ):
        return None
    return Advice("memorization", best.step, "The training pictures are being learned by heart, and pictures that are "
                  f"not trained on fit worse than at step {best.step}")


def _drift(measured: Sequence[Measured]) -> Advice | None:
    recent = measured[-PATIENCE:]
    if len(recent) < PATIENCE or any(one.drift < DRIFTED for one in recent):
        return None
    calm = [one.step for one in measured if one.drift < DRIFTED]
    best = calm[-1] if calm else measured[0].step
    return Advice("drift", best, "Prompts without the trigger word draw something else than they did")


def _validation(validation: Sequence[tuple[int, float]]) -> Advice | None:
    losses = [(step, loss) for step, loss in validation if math.isfinite(loss)]
    if len(losses) <= PATIENCE:
        return None
    best_step, lowest = min(losses, key=lambda point: point[1])
    if any(loss < LOSS_RISE * lowest for _, loss in losses[-PATIENCE:]):
        return None
    return Advice("validation", best_step, f"The validation loss has risen since step {best_step}")


class HealthLine(NamedTuple):
    """One sentence on how a training goes."""

    good: bool
    text: str


def health_lines(measured: Sequence[Measured]) -> list[HealthLine]:
    """What the measurements of a run say, for a person; nothing before the first one."""
    if not measured:
        return []
    last, best = measured[-1], max(measured, key=lambda one: one.held_out_gain)
    lines = [_learning(last, best)]
    if all(map(_by_heart, measured[-PATIENCE:])) and len(measured) >= PATIENCE:
        since = next(one.step for one in measured if _by_heart(one))
        lines.append(HealthLine(False, f"Since step {since} the training pictures fit better than others: they are "
                                       "being learned by heart."))
    if last.drift >= DRIFTED:
        lines.append(HealthLine(False, f"Prompts without the trigger word change, too: by {100 * last.drift:.0f} % of "
                                       "what a prompt itself does. A lower learning rate or fewer steps help."))
    return lines


def _by_heart(one: Measured) -> bool:
    """Whether most of what was learned holds for the trained pictures alone, and for nearly each of them."""
    return one.memorization >= MEMORIZED and one.held_out_gain <= (1 - OWN_SHARE) * one.member_gain


def _learning(last: Measured, best: Measured) -> HealthLine:
    if last.held_out_gain < LEAST_GAIN and best.held_out_gain < LEAST_GAIN:
        return HealthLine(False, "Nothing that holds for other pictures has been learned yet.")
    if best.held_out_gain - last.held_out_gain >= GAIN_LOSS:
        return HealthLine(False, f"Pictures that are not trained on fit worse than at step {best.step}: "
                                 f"{100 * last.held_out_gain:.0f} % better than with the base model alone, then "
                                 f"{100 * best.held_out_gain:.0f} %.")
    return HealthLine(True, f"Pictures that are not trained on fit {100 * last.held_out_gain:.0f} % better than with "
                            "the base model alone.")
