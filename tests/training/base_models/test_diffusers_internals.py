"""What Atelier uses of diffusers beyond its documentation is still there, and does the same."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch.testing import assert_close

from atelier.training.base_models.diffusers_internals import (
    denoised_estimate,
    keep_timesteps_on_cpu,
    skip_timesteps,
    vae_tiles,
    works_where_the_unet_is,
)
from atelier.training.sampling.samplers import SAMPLERS

USED = {   # module and attribute → who needs it
    "diffusers:StableDiffusionPipeline._execution_device": "diffusers_internals.py",
    "diffusers:StableDiffusionXLPipeline._execution_device": "diffusers_internals.py",
    "diffusers.models.activations:GEGLU.forward": "less_activation_memory.py",
    "diffusers.models.resnet:ResnetBlock2D": "torch_compile.py",
    "diffusers.models.attention_processor:AttnProcessor": "embedded_base/build.py",
    "diffusers.models.attention_processor:AttnProcessor2_0": "embedded_base/build.py",
}
SCHEDULERS = sorted({kind.scheduler for kind in SAMPLERS.values()})


@pytest.mark.parametrize("name", USED)
def test_nothing_has_moved(name: str):
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"diffusers {diffusers.__version__} has no {name}: see training/…/{USED[name]} ({error})")


def test_a_pipeline_asks_for_the_device_that_is_overridden():
    made = works_where_the_unet_is(diffusers.StableDiffusionPipeline)
    pipeline = made.__new__(made)
    object.__setattr__(pipeline, "unet", SimpleNamespace(device=torch.device("meta")))
    assert pipeline._execution_device == torch.device("meta")
    assert made.__name__ == "StableDiffusionPipeline", "saved files name the class"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_sets_its_timesteps_as_pipelines_ask(name: str):
    sampler: Any = keep_timesteps_on_cpu(getattr(diffusers, name)())
    sampler.set_timesteps(6, device="meta")   # where no value could be read
    assert sampler.timesteps.device.type == "cpu"
    whole = sampler.timesteps.clone()
    again: Any = getattr(diffusers, name)()
    skip_timesteps(again, 2)
    again.set_timesteps(6)
    assert_close(again.timesteps, whole[2:])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_estimate_of_a_step_is_the_picture_without_its_noise(name: str):
    """Where the noise is predicted exactly, the estimate is the clean latents, whatever the solver."""
    sampler: Any = getattr(diffusers, name)()
    sampler.set_timesteps(8)
    clean, noise = torch.rand(1, 4, 4, 4) - 0.5, torch.randn(1, 4, 4, 4)   # small: some clip to −1 … 1
    first = sampler.timesteps[:1]
    noisy = sampler.add_noise(clean, noise, first)
    sampler.scale_model_input(noisy, first[0])
    result = sampler.step(noise, first[0], noisy, return_dict=False)
    assert_close(denoised_estimate(sampler, result), clean, atol=2e-3, rtol=1e-3)


def test_tiles_are_set_and_put_back():
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=32)
    before = vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size
    with vae_tiles(vae, 512, 64):
        assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == (True, 512, 64)
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == before


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_pipeline_does_not_move_a_start_on_the_way(name: str):
    """That of Stable Diffusion XL tells every scheduler to begin with its first timestep."""
    scheduler = getattr(diffusers, name)()
    skip_timesteps(scheduler, 2)
    scheduler.set_timesteps(6)
    shown = len(scheduler.timesteps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
        assert scheduler.begin_index == 2
    scheduler.set_timesteps(6)
    assert len(scheduler.timesteps) == shown
