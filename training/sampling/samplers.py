"""Samplers: each drawing gets a new one, made from the base model's own noise schedule.

Training uses the model's scheduler, so a drawing never changes that object. A sampler takes over what the base model
was trained with: betas, prediction type, timestep spacing, zero terminal SNR. The solvers are diffusers'; which one is
the default, and how many steps each needs, was measured (docs/samplers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor

AUTO, DEFAULT = "auto", "dpm++"
SAMPLERS = {   # name → class in diffusers
    "ddim": "DDIMScheduler",                  # Song et al. 2021, arXiv 2010.02502
    "dpm++": "DPMSolverMultistepScheduler",   # DPM-Solver++ (2M): Lu et al. 2022, arXiv 2211.01095
    "unipc": "UniPCMultistepScheduler",       # Zhao et al. 2023, arXiv 2302.04867
    "euler": "EulerDiscreteScheduler",        # Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn
    "lcm": "LCMScheduler",                    # Luo et al. 2023, arXiv 2310.04378; only with an adapter made for it
}
# What adapters made for few steps are drawn with (LCM-LoRA: Luo et al. 2023, arXiv 2311.05556: 4 to 8, 1 to 2).
LCM_STEPS, LCM_GUIDANCE = 8, 1.5


def new_sampler(scheduler: Any, name: str) -> Any:
    """A new sampler with the noise schedule of a base model's scheduler, which is not changed."""
    import diffusers

    # Without this, diffusers' classes replace a spacing that no file mentions by a default of their own.
    spacing = scheduler.config.timestep_spacing
    return _on_the_cpu(getattr(diffusers, SAMPLERS[name]).from_config(scheduler.config, timestep_spacing=spacing))


@contextmanager
def using_sampler(pipeline: Any, sampler: Any) -> Iterator[None]:
    """The pipeline draws with this sampler while the context is open."""
    own = pipeline.scheduler
    pipeline.scheduler = sampler
    try:
        yield
    finally:
        pipeline.scheduler = own


def _on_the_cpu(sampler: Any) -> Any:
    """The sampler with its timesteps on the CPU: it looks up its constants by them, and would wait for the device."""
    place = sampler.set_timesteps

    @wraps(place)   # the pipeline looks at the signature
    def placed(*args: Any, device: object = None, **kwargs: Any) -> None:   # noqa: ARG001 (the pipeline's)
        place(*args, device="cpu", **kwargs)

    sampler.set_timesteps = placed
    return sampler


def on_denoised(sampler: Any, callback: Callable[[Tensor], None]) -> None:
    """After every step, call back with the sampler's estimate of the denoised latents ``[B, C, h, w]``."""
    step = sampler.step

    @wraps(step)   # the pipeline inspects the signature
    def step_and_call_back(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        # Multistep solvers store the estimate, the others return it.
        callback(sampler.model_outputs[-1] if hasattr(sampler, "model_outputs") else result[1])
        return result

    sampler.step = step_and_call_back
