"""Samplers: ways from noise to a picture, each made anew from the base model's own noise schedule.

Training noises with the model's scheduler, so a drawing never uses that object itself. What the base model was trained
with goes along: betas, prediction type, spacing of timesteps, zero terminal signal. The solvers are diffusers'; which
one is the default, and how many steps each needs, was measured (docs/samplers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor

AUTO, DEFAULT = "auto", "dpm++"
SAMPLERS = {   # name → the class in diffusers
    "ddim": "DDIMScheduler",                  # Song et al. 2021, arXiv 2010.02502
    "dpm++": "DPMSolverMultistepScheduler",   # DPM-Solver++ (2M): Lu et al. 2022, arXiv 2211.01095
    "unipc": "UniPCMultistepScheduler",       # Zhao et al. 2023, arXiv 2302.04867
    "euler": "EulerDiscreteScheduler",        # Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn
    "lcm": "LCMScheduler",                    # Luo et al. 2023, arXiv 2310.04378; only with an adapter made for it
}
# What adapters made for few steps are drawn with (LCM-LoRA: Luo et al. 2023, arXiv 2311.05556: 4 to 8, 1 to 2).
LCM_STEPS, LCM_GUIDANCE = 8, 1.5


def new_sampler(scheduler: Any, name: str) -> Any:
    """A sampler over the schedule of a base model's scheduler, which stays as it is."""
    import diffusers

    # Left to themselves, diffusers' classes replace a spacing that no file mentions by their own habit.
    spacing = scheduler.config.timestep_spacing
    return getattr(diffusers, SAMPLERS[name]).from_config(scheduler.config, timestep_spacing=spacing)


@contextmanager
def sampling(pipeline: Any, sampler: Any) -> Iterator[None]:
    """The pipeline draws with this sampler while the context is open."""
    own = pipeline.scheduler
    pipeline.scheduler = sampler
    try:
        yield
    finally:
        pipeline.scheduler = own


def watch(sampler: Any, see: Callable[[Tensor], None]) -> None:
    """After every step, let ``see`` have what the sampler takes the finished latents ``[B, C, h, w]`` to be."""
    step = sampler.step

    @wraps(step)   # the pipeline looks at the signature
    def seen(*args: Any, **kwargs: Any) -> Any:
        made = step(*args, **kwargs)
        # Solvers of several steps remember it, the others give it back.
        see(sampler.model_outputs[-1] if hasattr(sampler, "model_outputs") else made[1])
        return made

    sampler.step = seen
