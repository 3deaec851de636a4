"""Samplers: each drawing gets a new one, made from the base model's own noise schedule.

Training uses the model's scheduler, so a drawing never changes that object. A sampler takes over what the base model
was trained with: betas, prediction type, timestep spacing, zero terminal SNR. The solvers are diffusers'; which one is
the default, and how many steps each needs, was measured (docs/samplers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor

from atelier.adapters.core.settings import SettingError
from atelier.training.base_models.diffusers_internals import denoised_estimate, keep_timesteps_on_cpu

AUTO, DEFAULT = "auto", "dpm++"


@dataclass(frozen=True, slots=True)
class SamplerKind:
    """A class in diffusers with options, what A1111 calls it, and whether it can space its noise levels otherwise."""

    scheduler: str
    title: str
    options: tuple[tuple[str, object], ...] = ()
    respaced: bool = False


SAMPLERS = {
    # Song et al. 2021, arXiv 2010.02502
    "ddim": SamplerKind("DDIMScheduler", "DDIM"),
    # DPM-Solver++ (2M): Lu et al. 2022, arXiv 2211.01095
    "dpm++": SamplerKind("DPMSolverMultistepScheduler", "DPM++ 2M", respaced=True),
    # its stochastic form: every step adds noise of the picture's own generator
    "dpm++ sde": SamplerKind("DPMSolverMultistepScheduler", "DPM++ 2M SDE",
                             (("algorithm_type", "sde-dpmsolver++"),), respaced=True),
    # Zhao et al. 2023, arXiv 2302.04867
    "unipc": SamplerKind("UniPCMultistepScheduler", "UniPC", respaced=True),
    # Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn; its ancestral form; Heun's method
    "euler": SamplerKind("EulerDiscreteScheduler", "Euler", respaced=True),
    "euler a": SamplerKind("EulerAncestralDiscreteScheduler", "Euler a"),
    "heun": SamplerKind("HeunDiscreteScheduler", "Heun", respaced=True),
    # Luo et al. 2023, arXiv 2310.04378; only with an adapter made for it
    "lcm": SamplerKind("LCMScheduler", "LCM"),
}   # fmt: skip
NOISE_LEVELS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}   # name → option in diffusers
SPACINGS = ("leading", "linspace", "trailing")   # of timesteps: Lin et al. 2024, arXiv 2305.08891, table 2
SCHEDULES = (AUTO, *NOISE_LEVELS, *SPACINGS)
# What adapters made for few steps are drawn with (LCM-LoRA: Luo et al. 2023, arXiv 2311.05556: 4 to 8, 1 to 2).
LCM_STEPS, LCM_GUIDANCE = 8, 1.5


def new_sampler(scheduler: Any, name: str, schedule: str = AUTO) -> Any:
    """A new sampler with the noise schedule of a base model's scheduler, which is not changed.

    Args:
        scheduler: the base model's.
        name: of :data:`SAMPLERS`.
        schedule: of :data:`SCHEDULES`; auto is the spacing that the base model was made for.

    Raises:
        SettingError: this sampler can't space its noise levels so.
    """
    import diffusers

    kind = SAMPLERS[name]
    # Without this, diffusers' classes replace a spacing that no file mentions by a default of their own.
    options = {"timestep_spacing": scheduler.config.timestep_spacing, **dict(kind.options)}
    if schedule in NOISE_LEVELS:
        if not kind.respaced:
            able = ", ".join(each for each, other in SAMPLERS.items() if other.respaced)
            raise SettingError(f"The sampler '{name}' does not support the schedule '{schedule}'. These samplers do: "
                               f"{able}.")
        options[NOISE_LEVELS[schedule]] = True
    elif schedule != AUTO:
        options["timestep_spacing"] = schedule
    return keep_timesteps_on_cpu(getattr(diffusers, kind.scheduler).from_config(scheduler.config, **options))


@contextmanager
def using_sampler(pipeline: Any, sampler: Any) -> Iterator[None]:
    """The pipeline draws with this sampler while the context is open."""
    own = pipeline.scheduler
    pipeline.scheduler = sampler
    try:
        yield
    finally:
        pipeline.scheduler = own


def on_denoised(sampler: Any, callback: Callable[[Tensor], None]) -> None:
    """After every step, call back with the sampler's estimate of the denoised latents ``[B, C, h, w]``."""
    step = sampler.step

    @wraps(step)   # the pipeline inspects the signature
    def step_and_call_back(*args: Any, **kwargs: Any) -> Any:
        """The sampler's step, then the call."""
        result = step(*args, **kwargs)
        callback(denoised_estimate(sampler, result))
        return result

    sampler.step = step_and_call_back
