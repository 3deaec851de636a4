"""Base models that were distilled to draw in few steps: how they are recognised, and how they want to be drawn with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FewSteps:
    """What a distilled model is drawn with unless a person says otherwise."""

    method: str            # of distillation, as people call it
    steps: int
    guidance: float
    sampler: str           # of training/sampling/samplers.py
    schedule: str = "auto"

    @property
    def settings(self) -> str:
        """What it is drawn with, as part of a sentence."""
        spacing = "" if self.schedule == "auto" else f" with {self.schedule} spacing"
        return f"{self.steps} steps, guidance {self.guidance:g} and the sampler '{self.sampler}'{spacing}"


# Steps, guidance and sampler as the publishers' model cards give them. SD-Turbo and SDXL-Turbo: 1 to 4 steps without
# guidance (Sauer et al. 2023, arXiv 2311.17042). SDXL-Lightning: Euler, trailing (Lin et al. 2024, arXiv 2402.13929).
# Hyper-SD: DDIM, trailing (Ren et al. 2024, arXiv 2404.13686). LCM: Luo et al. 2023, arXiv 2310.04378 and 2311.05556.
# DMD2: LCM's sampler (Yin et al. 2024, arXiv 2405.14867).
_METHODS = (
    (r"turbo", FewSteps("Turbo", 4, 1.0, "euler a", "trailing")),
    (r"lightning", FewSteps("Lightning", 4, 1.0, "euler", "trailing")),
    (r"dmd2?", FewSteps("DMD", 4, 1.0, "lcm")),
    (r"hyper", FewSteps("Hyper", 8, 1.0, "ddim", "trailing")),
    (r"lcm|latentconsistency", FewSteps("LCM", 8, 1.5, "lcm")),
)
_SCHEDULERS = {"LCMScheduler": "LCM", "TCDScheduler": "Hyper"}
_LONG = ("turbo", "lightning", "latentconsistency")   # long enough to be meant wherever they stand in a name
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[\s_-]?steps?(?![a-z])", re.I)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def distilled_by_name(names: Iterable[str]) -> FewSteps | None:
    """The settings of a distilled model whose name or metadata says so; None for other models.

    >>> distilled_by_name(["ByteDance/SDXL-Lightning-4step"]).steps
    4
    >>> distilled_by_name(["hyperrealism-v2"]) is None
    True
    """
    for name in names:
        if (found := _by_one_name(name)) is not None:
            steps = _STEPS.search(name)
            return found if steps is None else FewSteps(
                found.method, max(1, int(steps[1])), found.guidance, found.sampler, found.schedule)   # fmt: skip
    return None


def distilled_by_scheduler(name: str) -> FewSteps | None:
    """The same from the class of a diffusers folder's scheduler."""
    method = _SCHEDULERS.get(name)
    return next((found for _, found in _METHODS if found.method == method), None)


def _by_one_name(name: str) -> FewSteps | None:
    plain = re.sub(r"[^a-z]", "", name.lower())
    words = [word.lower() for word in _WORDS.findall(name)]
    for pattern, found in _METHODS:
        alone = any(re.fullmatch(pattern, word) and not _is_realism(words[i + 1 :]) for i, word in enumerate(words))
        if alone or any(long in plain for long in _LONG if re.search(long, pattern)):
            return found
    return None


def _is_realism(following: list[str]) -> bool:
    """Whether a word stands before 'real…': hyper-realistic is a style."""
    return bool(following) and following[0].startswith("real")
