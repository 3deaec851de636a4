"""Image to image, inpainting, hires fix, clip skip, samplers: against diffusers' own pipelines at the same settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from families import write_configurations, write_models
from PIL import Image, ImageDraw

from atelier.adapters.core.settings import SettingError
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.sampling.sample import DrawRequest, draw
from atelier.training.sampling.samplers import AUTO, NOISE_LEVELS, SAMPLERS, new_sampler, using_sampler
from atelier.training.sampling.start_picture import StartPicture

CLOSE = 2 / 255   # of what a pixel can be: both round to whole numbers


def picture(size: int = 64) -> Image.Image:
    drawn = Image.new("RGB", (size, size), (240, 200, 60))
    ImageDraw.Draw(drawn).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill=(40, 90, 200))
    return drawn


def half_mask(size: int = 64) -> Image.Image:
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).rectangle((size // 2, 0, size, size), fill=255)
    return mask


def apart(first: Image.Image, second: Image.Image) -> float:
    a, b = (np.asarray(each.convert("RGB"), dtype=np.float32) / 255 for each in (first, second))
    return float(np.abs(a - b).max())


def pipeline(model: BaseModel, kind: type, sampler: str) -> Any:
    """One of diffusers' own pipelines over the model's parts."""
    parts = {name: getattr(model, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    made = kind(**parts, scheduler=new_sampler(model.scheduler, sampler), safety_checker=None,
                feature_extractor=None, requires_safety_checker=False)   # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def theirs(model: BaseModel, kind: type, sampler: str, **options: Any) -> Image.Image:
    """What it draws with the seed 5."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(5)
        return pipeline(model, kind, sampler)(**options, generator=generator).images[0]


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return small_model(tmp_path_factory.mktemp("sd1"), "sd1")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return small_model(tmp_path_factory.mktemp("sdxl"), "sdxl")


def small_model(folder: Path, family: str) -> BaseModel:
    configurations = write_configurations(folder / "configurations", family)
    return load(str(write_models(folder, family, configurations=configurations)[0]))


@pytest.fixture(autouse=True)
def means(monkeypatch: pytest.MonkeyPatch) -> None:
    """The posterior's mean in place of a sample, as here: nothing is left to chance."""
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint

    for module in (img2img, inpaint):
        monkeypatch.setattr(module, "retrieve_latents", lambda output, generator: output.latent_dist.mode())


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc", "euler", "euler a", "dpm++ sde"])
def test_image_to_image_is_that_of_diffusers(model: BaseModel, sampler: str) -> None:
    request = DrawRequest(prompt="a fox", negative="mud", seed=5, steps=6, guidance=4, sampler=sampler,
                          width=64, height=64)
    [ours] = draw(model, request, start=StartPicture(picture(), 0.7))
    reference = theirs(model, diffusers.StableDiffusionImg2ImgPipeline, sampler, prompt="a fox", negative_prompt="mud",
                       image=picture(), strength=0.7, num_inference_steps=6, guidance_scale=4)
    assert apart(ours, reference) <= CLOSE
    [fresh] = draw(model, request)
    assert apart(ours, fresh) > 0.05


@pytest.mark.parametrize(("sampler", "strength"), [("dpm++", 0.7), ("euler", 1.0)])
def test_inpainting_is_that_of_diffusers(sd1: BaseModel, sampler: str, strength: float) -> None:
    request = DrawRequest(prompt="a fox", seed=5, steps=6, guidance=4, sampler=sampler, width=64, height=64)
    [ours] = draw(sd1, request, start=StartPicture(picture(), strength, half_mask()))
    reference = theirs(sd1, diffusers.StableDiffusionInpaintPipeline, sampler, prompt="a fox", image=picture(),
                       mask_image=half_mask(), strength=strength, num_inference_steps=6, guidance_scale=4,
                       width=64, height=64)
    inside = (40, 0, 64, 64)   # past the edge that is blended
    assert apart(ours.crop(inside), reference.crop(inside)) <= CLOSE
    assert apart(ours.crop((0, 0, 32, 64)), picture().crop((0, 0, 32, 64))) == 0   # outside nothing changes at all


def test_a_picture_of_another_shape_is_cut_around_its_middle(model: BaseModel) -> None:
    wide = Image.new("RGB", (128, 64))
    wide.paste(picture(), (32, 0))
    request = DrawRequest(prompt="a fox", seed=1, steps=4)
    [cut], [square] = (draw(model, request, start=StartPicture(each, 0.5)) for each in (wide, picture()))
    assert apart(cut, square) <= CLOSE


@pytest.mark.parametrize("strength", [0, -1, 1.5])
def test_a_strength_that_means_nothing_is_refused(strength: float) -> None:
    with pytest.raises(SettingError, match="above 0 and at most 1"):
        StartPicture(picture(), strength)


def test_a_mask_of_another_size_and_too_few_steps_are_refused(model: BaseModel) -> None:
    with pytest.raises(SettingError, match="32×32 and the picture 64×64"):
        StartPicture(picture(), 0.5, half_mask(32))
    with pytest.raises(SettingError, match="nothing would be drawn"):
        draw(model, DrawRequest(steps=4), start=StartPicture(picture(), 0.2))


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_hires_fix_is_a_small_drawing_and_image_to_image(model: BaseModel, upscaler: str) -> None:
    request = DrawRequest(prompt="a fox", seed=5, steps=5, guidance=4, sampler="ddim", width=64, height=64)
    seen: list[tuple[int, int]] = []
    [large] = draw(model, replace(request, upscale=2, upscaler=upscaler, upscale_strength=0.6, upscale_steps=10),
                   on_step=lambda done, of: seen.append((done, of)))
    assert large.size == (128, 128) and seen == [(i, 11) for i in range(1, 12)]
    [small] = draw(model, request)
    if upscaler == "latent":
        return
    # The small picture, enlarged, and noise that the same generator draws after the first.
    reference = pipeline(model, diffusers.StableDiffusionImg2ImgPipeline, "ddim")
    generator = torch.Generator().manual_seed(5)
    side = 64 // model.pipeline.vae_scale_factor
    torch.randn(1, model.unet.config.in_channels, side, side, generator=generator)
    with torch.inference_mode():
        expected = reference(prompt="a fox", image=small.resize((128, 128), Image.Resampling.LANCZOS), strength=0.6,
                             num_inference_steps=10, guidance_scale=4, generator=generator).images[0]
    assert apart(large, expected) <= CLOSE


def plainly(model: BaseModel, **options: Any) -> Image.Image:
    """What the model's own diffusers pipeline draws from plain prompts."""
    with torch.inference_mode(), using_sampler(model.pipeline, new_sampler(model.scheduler, "ddim")):
        return model.pipeline(num_inference_steps=3, width=64, height=64, generator=torch.Generator().manual_seed(3),
                              **options).images[0]


@pytest.mark.parametrize("family", ["model", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_is_that_of_diffusers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, family: str, skip: int
) -> None:
    model = request.getfixturevalue(family)
    # diffusers looks for the text model where transformers had it before version 5.
    monkeypatch.setattr(type(model.text_encoder), "text_model", property(lambda self: self), raising=False)
    # Without guidance: diffusers leaves the layers of the negative prompt in, here both are read alike.
    asked = DrawRequest(prompt="a fox", seed=3, steps=3, guidance=1, sampler="ddim", width=64, height=64)
    [ours], [other] = (draw(model, replace(asked, clip_skip=value)) for value in (skip, 1 - skip))
    expected = plainly(model, prompt="a fox", guidance_scale=1, clip_skip=skip or None)
    assert apart(ours, expected) <= CLOSE < apart(ours, other)


def test_guidance_rescale_is_that_of_diffusers(model: BaseModel) -> None:
    asked = DrawRequest(prompt="a fox", seed=3, steps=3, guidance=9, sampler="ddim", width=64, height=64)
    [plain], [ours] = (draw(model, replace(asked, guidance_rescale=value)) for value in (0.0, 0.7))
    expected = plainly(model, prompt="a fox", guidance_scale=9, guidance_rescale=0.7)
    assert apart(ours, expected) <= CLOSE < apart(ours, plain)


@pytest.mark.parametrize(("sampler", "schedule"), [
    *((sampler, AUTO) for sampler in SAMPLERS), ("dpm++", "karras"), ("unipc", "exponential"), ("heun", "karras"),
    ("euler a", "karras"), ("ddim", "exponential"), ("lcm", "karras"), ("ddim", "leading"), ("euler", "linspace")])
def test_every_sampler_draws_with_every_schedule_or_says_why_not(model: BaseModel, sampler: str, schedule: str) -> None:
    request = DrawRequest(prompt="an emoji of a cat", seed=1, steps=3, sampler=sampler, schedule=schedule, guidance=1.5)
    if schedule in NOISE_LEVELS and not SAMPLERS[sampler].respaced:
        with pytest.raises(SettingError, match="These samplers do: dpm"):
            draw(model, request)
        return
    seen: list[tuple[int, int]] = []
    [first] = draw(model, request, on_step=lambda done, of: seen.append((done, of)))
    [again] = draw(model, request)
    assert apart(first, again) == 0 and np.asarray(first).std() > 1   # noise on the way is the picture's own
    assert seen == [(1, 3), (2, 3), (3, 3)]   # Heun's method, too, which calls the UNet twice a step


def test_samplers_are_the_classes_of_diffusers_with_their_schedules(model: BaseModel) -> None:
    karras = new_sampler(model.scheduler, "dpm++", "karras")
    expected = diffusers.DPMSolverMultistepScheduler.from_config(
        model.scheduler.config, use_karras_sigmas=True, timestep_spacing=model.scheduler.config.timestep_spacing)
    for each in (karras, expected):
        each.set_timesteps(7)
    torch.testing.assert_close(karras.sigmas, expected.sigmas, rtol=0, atol=0)
    plain = new_sampler(model.scheduler, "dpm++")
    plain.set_timesteps(7)
    assert not torch.equal(plain.sigmas, karras.sigmas)
    assert new_sampler(model.scheduler, "dpm++ sde").config.algorithm_type == "sde-dpmsolver++"
    assert new_sampler(model.scheduler, "euler", "leading").config.timestep_spacing == "leading"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("skip", [0, 1, 11])
def test_layers_are_read_as_transformers_gives_them_and_no_hook_stays(
    request: pytest.FixtureRequest, family: str, skip: int
) -> None:
    model = request.getfixturevalue(family)
    encoders, ids = model.text_encoders, tokenize(model, ["a fox"])

    def hooks() -> int:
        parts = [part for one in encoders for part in one.modules()]
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)

    before = hooks()
    features = encode_text(model, ids, skip).features
    assert hooks() == before
    states = [one(row, output_hidden_states=True).hidden_states
              for one, row in zip(encoders, ids.chunk(len(encoders), 1), strict=True)]   # fmt: skip
    last = [each[max(-len(each), -len(encoders) - skip)] for each in states]
    expected = torch.cat(last, -1) if len(encoders) == 2 else encoders[0].final_layer_norm(last[0])
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
