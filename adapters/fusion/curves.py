"""Strengths that change while a picture is drawn."""

from __future__ import annotations

from dataclasses import dataclass

SWITCH_SHARE = 0.1   # of all steps: τ of LoRA-Switch, 5 steps of its authors' 50


@dataclass(frozen=True, slots=True)
class StrengthCurve:
    """A strength drawn over denoising: straight between its handles, which stand at even distances from 0 to 1.

    >>> [StrengthCurve((0.0, 1.0, 0.0))(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 0.0]
    """

    handles: tuple[float, ...]

    def __call__(self, progress: float) -> float:
        """What the strength is multiplied with at this progress, 0 … 1."""
        place = min(1.0, max(0.0, progress)) * (len(self.handles) - 1)
        left = min(int(place), len(self.handles) - 2)
        return self.handles[left] + (self.handles[left + 1] - self.handles[left]) * (place - left)


@dataclass(frozen=True, slots=True)
class SwitchCurve:
    """LoRA-Switch (Zhong et al. 2024, arXiv 2402.16843): adapter ``place`` of ``count`` acts every so many steps."""

    place: int
    count: int
    steps: int    # denoising steps of the whole drawing
    steps_per_turn: int     # steps of one turn

    def __call__(self, progress: float) -> float:
        """1 while it is its turn, else 0."""
        # Schedules start at 0 or half a step in; a rounding error must not give a step to the one before.
        step = int(progress * self.steps + 1e-6)
        return float(step // self.steps_per_turn % self.count == self.place)


def switch_curves(count: int, steps: int) -> list[SwitchCurve]:
    """LoRA-Switch for so many adapters: each acts for a tenth of the steps, then the next.

    >>> [turn.steps_per_turn for turn in (*switch_curves(1, 50), *switch_curves(1, 20), *switch_curves(1, 4))]
    [5, 2, 1]
    """
    return [SwitchCurve(place, count, steps, max(1, round(SWITCH_SHARE * steps))) for place in range(count)]
