"""Samplers: diffusers' own pipeline with that scheduler is the reference, and the base model's scheduler stays."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from atelier.adapters.core.settings import SettingError
from atelier.training.base_models.base_model import load
from atelier.training.sampling.sample import DrawRequest, draw
from atelier.training.sampling.samplers import AUTO, DEFAULT, SAMPLERS, new_sampler, on_denoised, using_sampler

ASK = DrawRequest(prompt="a red fox", negative="blue", steps=5, seed=11)
SOLVERS = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler",
           "euler": "EulerDiscreteScheduler", "lcm": "LCMScheduler"}   # fmt: skip
# v-prediction with trailing steps; down to pure noise; and an old epsilon model, whose file says nothing of spacing.
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def with_sampler(name: str, **changes) -> DrawRequest:
    return DrawRequest.from_dict({**ASK.to_dict(), "sampler": name, **changes})


def plain(model, folder, name: str, **given):
    """The picture of diffusers' own pipeline, its scheduler read from the base model's file."""
    kind = getattr(diffusers, SOLVERS[name])
    given |= {"clip_sample": False} if name in ("ddim", "lcm") else {}   # made for pixels, it would cut latents off
    scheduler = kind.from_pretrained(folder / "scheduler", **given)
    parts = (model.vae, model.text_encoder, model.tokenizer, model.unet, scheduler, None, None)
    pipeline = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(ASK.prompt, negative_prompt=ASK.negative, num_inference_steps=ASK.steps,
                    guidance_scale=ASK.guidance, generator=torch.Generator().manual_seed(ASK.seed)).images   # fmt: skip


def test_every_sampler_is_tried():
    """Here, or in the tests of what came later (test_drawing_features.py)."""
    assert {*SOLVERS, "dpm++ sde", "euler a", "heun"} == SAMPLERS.keys()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_v_prediction_model_draws_as_the_plain_pipeline(base, model, name):
    np.testing.assert_array_equal(pixels(draw(model, with_sampler(name))), pixels(plain(model, base, name)))


@pytest.mark.parametrize("name", SOLVERS)
def test_an_old_epsilon_model_keeps_its_spacing(epsilon_base, epsilon_model, name):
    expected = plain(epsilon_model, epsilon_base, name, timestep_spacing="leading")
    np.testing.assert_array_equal(pixels(draw(epsilon_model, with_sampler(name))), pixels(expected))


def test_a_model_trained_down_to_pure_noise_starts_there(variant):
    folder = variant(scheduler=ZERO)
    model = load(str(folder), "cpu")
    for name in SOLVERS:
        sampler = new_sampler(model.scheduler, name)
        sampler.set_timesteps(5)
        assert sampler.timesteps[0] == 999
        assert sampler.alphas_cumprod[-1] < 1e-6
        np.testing.assert_array_equal(pixels(draw(model, with_sampler(name))), pixels(plain(model, folder, name)))


def test_samplers_differ(model):
    drawn = [draw(model, with_sampler(name))[0].tobytes() for name in SOLVERS]
    assert len(set(drawn)) == len(drawn)


def test_many_steps_of_any_solver_arrive_at_the_same_picture(model):
    solvers = [name for name in SOLVERS if name != "lcm"]   # which adds noise at every step
    reference = pixels(draw(model, with_sampler("ddim", steps=80))).astype(float)
    for name in solvers:
        many, few = (pixels(draw(model, with_sampler(name, steps=steps))).astype(float) for steps in (30, 3))
        assert np.abs(many - reference).mean() < 2 < np.abs(few - reference).mean(), name


@pytest.mark.parametrize("name", SOLVERS)
def test_drawing_leaves_the_model_s_scheduler_as_it_was(model, name):
    scheduler = model.scheduler
    config, timesteps = dict(scheduler.config), scheduler.timesteps.clone()
    draw(model, with_sampler(name))
    assert model.scheduler is scheduler is model.pipeline.scheduler
    assert dict(scheduler.config) == config
    assert torch.equal(scheduler.timesteps, timesteps)
    assert "step" not in vars(scheduler)


def test_an_error_on_the_way_gives_the_scheduler_back(model):
    def stop(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(model, with_sampler("unipc"), on_step=stop)
    assert model.pipeline.scheduler is model.scheduler


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_guess_is_the_picture(model, name):
    sampler, guesses = new_sampler(model.scheduler, name), []
    on_denoised(sampler, guesses.append)
    with using_sampler(model.pipeline, sampler), torch.inference_mode():
        latents = model.pipeline("a fox", num_inference_steps=4, generator=torch.Generator().manual_seed(1),
                                 output_type="latent").images   # fmt: skip
    assert len(guesses) == 4
    # DDIM stops at the first noise level of the schedule, the others at none.
    torch.testing.assert_close(guesses[-1], latents, atol=0.2 if name == "ddim" else 1e-5, rtol=0)
    assert (guesses[0] - latents).abs().mean() > 0.05


def test_auto_is_decided_once(model):
    decided = ASK.with_sampler()
    assert ASK.sampler == AUTO
    assert decided == with_sampler(DEFAULT) == decided.with_sampler("lcm")
    assert draw(model, ASK)[0].tobytes() == draw(model, decided)[0].tobytes()


def test_an_adapter_made_for_few_steps_decides_them():
    fast = ASK.with_sampler("lcm")
    assert (fast.sampler, fast.steps, fast.guidance) == ("lcm", 5, 1.5)
    assert DrawRequest(steps=20, guidance=1.0).with_sampler("lcm").to_dict() == {
        **DrawRequest(steps=8, guidance=1.0, sampler="lcm").to_dict()
    }
    assert with_sampler("ddim").with_sampler("lcm") == with_sampler("ddim")


def test_a_sampler_nobody_knows_is_refused():
    with pytest.raises(SettingError, match=r"sampler is 'k_heun', but it must be one of: auto, ddim, dpm\+\+"):
        with_sampler("k_heun")
