"""What Atelier uses of diffusers beyond its documentation, in one place.

tests/training/base_models/test_diffusers_internals.py watches it, and says what has moved when another version is
installed. Samplers are diffusers' schedulers; a pipeline calls ``set_timesteps`` and then ``step`` for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor


def works_where_the_unet_is(pipeline: type) -> Any:
    """The pipeline's class, but on the device of its UNet: it would take that of any part, and some are offloaded."""
    return type(pipeline.__name__, (pipeline,), {"_execution_device": property(lambda self: self.unet.device)})


def keep_timesteps_on_cpu(sampler: Any) -> Any:
    """The sampler with its timesteps on the CPU: it looks up its constants by them, and would wait for the device."""
    set_timesteps = sampler.set_timesteps

    @wraps(set_timesteps)   # the pipeline looks at the signature
    def set_on_cpu(*args: Any, device: object = None, **kwargs: Any) -> None:   # noqa: ARG001 (the pipeline's)
        """``set_timesteps`` with the device replaced by the CPU."""
        set_timesteps(*args, device="cpu", **kwargs)

    sampler.set_timesteps = set_on_cpu
    return sampler


def skip_timesteps(sampler: Any, skipped: int) -> None:
    """Let a pipeline see only the timesteps after the first ``skipped``; it reads them when it has set them.

    The solver needs all of them again from its first step on: it tells its last step by their number. It begins after
    those that are skipped, whatever the pipeline says: that of Stable Diffusion XL tells it to begin with the first.
    """
    set_timesteps, step = sampler.set_timesteps, sampler.step
    set_begin_index = getattr(sampler, "set_begin_index", None)
    if set_begin_index is not None:
        sampler.set_begin_index = lambda *_: set_begin_index(skipped)

    @wraps(set_timesteps)   # the pipeline looks at the signatures
    def set_later(*args: Any, **kwargs: Any) -> None:
        """Set all timesteps, then show the pipeline the later ones."""
        set_timesteps(*args, **kwargs)
        whole = sampler.timesteps
        if hasattr(sampler, "set_begin_index"):
            sampler.set_begin_index()
        sampler.timesteps = whole[skipped:]

        @wraps(step)
        def step_with_all(*args: Any, **kwargs: Any) -> Any:
            """One step of the solver with all timesteps in sight."""
            sampler.timesteps = whole
            return step(*args, **kwargs)

        sampler.step = step_with_all

    sampler.set_timesteps = set_later


def denoised_estimate(sampler: Any, result: tuple[Tensor, ...]) -> Tensor:
    """The sampler's estimate of the denoised latents ``[B, C, h, w]`` after a step with ``result``.

    Multistep solvers store it, the others return it.
    """
    return sampler.model_outputs[-1] if hasattr(sampler, "model_outputs") else result[1]


@contextmanager
def vae_tiles(vae: Any, pixels: int, latents: int) -> Iterator[None]:
    """Let the VAE work in tiles of this side while this is open: left alone, a tile is as large as the picture."""
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = {name: getattr(vae, name) for name in names}
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, pixels, latents
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
