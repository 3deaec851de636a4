"""Prompt + Mix + seed → pictures: previews, the Studio and the command line all draw through here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from atelier.adapters.attach.merge import MergeCache, can_merge
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError, Settings, setting
from atelier.adapters.fusion.live import Fusion, mount_fusion
from atelier.adapters.prompt_projection import remove_directions
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.base_models.distilled import FewSteps
from atelier.training.base_models.malloc_tuning import trim_memory
from atelier.training.sampling.decode import decode_latents
from atelier.training.sampling.draw_cache import DrawCache, encode_prompts
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.latent_preview import LatentPreview
from atelier.training.sampling.prompt_encoding import (
    PLAIN,
    WEIGHTS,
    PromptReading,
    first_encoder_tokens,
    same_length,
)
from atelier.training.sampling.region_prompts import common_parts, with_region_texts
from atelier.training.sampling.samplers import (
    AUTO,
    DEFAULT,
    LCM_GUIDANCE,
    LCM_STEPS,
    SAMPLERS,
    SCHEDULES,
    new_sampler,
    on_denoised,
    using_sampler,
)
from atelier.training.sampling.start_picture import (
    StartLatents,
    StartPicture,
    encode_picture,
    fitted,
    paste_outside,
    start_latents,
)

GUIDANCE = 3.0
LATENT_PREVIEW_SECONDS = 0.2   # between two; more frequent ones would only slow the drawing down


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRequest(Settings):
    """What to draw. The same request on the same machine gives the same pictures."""

    prompt: str = setting("", "What the picture shows.")
    negative: str = setting("", "Negative prompt: what the picture should not show.")
    unwanted: str = setting("", "What the trigger word brings along but should not, such as 'on a beach' (DECOR).")
    unwanted_strength: float = setting(1.0, "How strongly the unwanted part is removed. 0 leaves the prompt unchanged.",
                                       low=0, high=1)
    seed: int = setting(0, "Seed of the first picture. Each further one adds 1.", low=0, high=2**31 - 1)
    count: int = setting(1, "Number of pictures.", low=1, high=64)
    steps: int = setting(20, "Denoising steps.", low=1, high=1000)
    guidance: float = setting(GUIDANCE, "Guidance scale: how closely the prompt is followed. 1 turns it off.",
                              low=1, high=30)
    width: int = setting(0, "Width in pixels. 0 means the base model's own.", low=0, high=4096)
    height: int = setting(0, "Height in pixels. 0 means the base model's own.", low=0, high=4096)
    sampler: str = setting(AUTO, f"Sampler. 'auto' is {DEFAULT}, or what an adapter or the base model was made for.",
                           choices=(AUTO, *SAMPLERS))
    schedule: str = setting(AUTO, "Spacing of the noise levels. 'auto' is the base model's own.", choices=SCHEDULES)
    prompt_syntax: str = setting(WEIGHTS, "'weights' reads (word:1.2), [word] and BREAK, and prompts of "
                                          "any length. 'plain' reads everything as text, and cuts long "
                                          "prompts.", choices=(WEIGHTS, PLAIN))
    clip_skip: int = setting(0, "Layers to skip at the end of the text encoder. Other tools count from 1.",
                             low=0, high=11)
    guidance_rescale: float = setting(0.0, "Reduces oversaturated colours at high guidance, for base models with zero "
                                           "terminal SNR. 0.7 is common (arXiv 2305.08891).", low=0, high=1)
    upscale: float = setting(1.0, "Hires fix: draw small, enlarge this many times, then draw the details. 1 turns it "
                                  "off.", low=1, high=4)
    upscaler: str = setting("latent", "What is enlarged: the latents, or the pixels with a Lanczos filter.",
                            choices=("latent", "lanczos"))
    upscale_steps: int = setting(0, "Steps of the second pass. 0 means the same as in the first.", low=0, high=1000)
    upscale_strength: float = setting(0.55, "How much the second pass may change. 1 redraws everything.",
                                      low=0.01, high=1)

    def with_sampler(self, adapter_sampler: str = "", few: FewSteps | None = None) -> DrawRequest:
        """The request with ``auto`` replaced.

        With ``lcm`` and with distilled base models, steps and guidance are reduced to what they need.

        Args:
            adapter_sampler: the sampler that an adapter of the Mix was made for.
            few: how the base model is drawn with, if it is distilled.
        """
        if self.sampler != AUTO:
            return self
        if adapter_sampler != "lcm" and few is not None:
            schedule = few.schedule if self.schedule == AUTO else self.schedule
            return replace(self, sampler=few.sampler, schedule=schedule, steps=min(self.steps, few.steps),
                           guidance=min(self.guidance, few.guidance))   # fmt: skip
        if adapter_sampler != "lcm":
            return replace(self, sampler=DEFAULT)
        return replace(self, sampler="lcm", steps=min(self.steps, LCM_STEPS), guidance=min(self.guidance, LCM_GUIDANCE))


def draw(
    model: BaseModel,
    request: DrawRequest,
    mix: Mix | Fusion = Mix(),
    on_step: Callable[[int, int], None] | None = None,
    *,
    on_latent_preview: Callable[[list[Image.Image]], None] | None = None,
    same_seed: bool = False,
    cache: DrawCache | None = None,
    start: StartPicture | None = None,
) -> list[Image.Image]:
    """Draw ``request.count`` pictures with the adapters of ``mix`` at their strengths, or as a fusion says.

    ``on_step(done, of)`` is called after every denoising step; a few times a second ``on_latent_preview`` gets small
    previews of the pictures. ``cache``: what earlier drawings with this model computed, so that only what is new is
    computed. ``same_seed``: all from the one seed, for a mix that treats the pictures of a batch differently.
    ``start``: a picture to start from; without one a drawing starts from noise.

    Raises:
        NotFiniteError: not finite values, of which there is no picture.
        SettingError: a size the model can't draw, or settings that don't go together.
        MountError: an adapter of another base model.
    """
    request, cache = request.with_sampler(few=model.info.few_steps), cache or DrawCache()
    width, height = picture_size(model, request)
    large = _enlarged(model, request, width, height)
    generators = picture_generators(request.seed, request.count, step=0 if same_seed else 1)
    on_latents = on_latent_preview and _throttled(cache.latent_preview(model), on_latent_preview)
    with torch.inference_mode():
        prompts = prompt_arguments(model, request, mix, cache, each=same_seed)
        if isinstance(mix, Fusion) and any(one.prompt for one in mix.passes()):
            reading = PromptReading(request.prompt_syntax, request.clip_skip, cache.inversions)
            mix, prompts = with_region_texts(model, mix, cache, prompts, reading, request.negative)
        run = partial(
            denoise, model, request, generators=generators, on_step=step_reporter(request, start, on_step),
            prompts=prompts, on_latents=on_latents,
        )   # fmt: skip
        begin = start and _from_picture(model, start, width, height, generators, cache.savings)
        with _apply_mix(model, mix, cache.merges, cache.savings, {"unet"}):
            latents = run((width, height), begin)
            if large != (width, height):
                latents = run(large, _from_small(model, request, latents, large, generators, cache.savings))
        pictures = decode_latents(model, latents, cache.savings)
    trim_memory()   # a server may wait for hours, and a training may need it
    return [paste_outside(start, picture) for picture in pictures] if start else pictures


def denoise(
    model: BaseModel, request: DrawRequest, size: tuple[int, int], start: StartLatents | None, *,
    generators: list[torch.Generator], prompts: dict[str, Any], on_step: Callable[[int], None],
    on_latents: Callable[[Tensor], None] | None,
) -> Tensor:   # fmt: skip
    """One pass of the sampler → latents ``[B, C, h, w]``."""
    sampler = new_sampler(model.scheduler, request.sampler, request.schedule)
    if on_latents:
        on_denoised(sampler, on_latents)
    steps = start.steps or request.steps if start else request.steps
    latents = start.begin(sampler, steps) if start else None

    def after_step(_pipeline: object, step: int, _timestep: object, values: dict[str, Any]) -> dict[str, Any]:
        """Report the step and put what lies outside the mask back."""
        on_step(step)
        if start:
            values["latents"] = start.keep_outside(sampler, step, values["latents"])
        return values

    with using_sampler(model.pipeline, sampler):
        return model.pipeline(
            **prompts,
            num_inference_steps=steps,
            guidance_scale=request.guidance,
            guidance_rescale=request.guidance_rescale,
            width=size[0],
            height=size[1],
            generator=generators,
            latents=latents,
            callback_on_step_end=after_step,
            output_type="latent",
        ).images


def step_reporter(
    request: DrawRequest, start: StartPicture | None, on_step: Callable[[int, int], None] | None
) -> Callable[[int], None]:
    """Count the steps of both passes for whoever wants to know, from the number of a call of the UNet in its pass."""
    calls = 2 if request.sampler == "heun" else 1   # a step
    first = _shares(request.steps, start.strength if start else 1.0)
    second = _shares(request.upscale_steps or request.steps, request.upscale_strength)
    done, of = 0, first + (second if request.upscale > 1 else 0)

    def report(call: int) -> None:
        """Count one call of the UNet and pass on (steps done, of all)."""
        nonlocal done
        if call % calls == 0:
            done += 1
            if on_step:
                on_step(min(done, of), of)

    return report


def _shares(steps: int, strength: float) -> int:
    return min(int(steps * strength), steps)


def _from_picture(
    model: BaseModel, start: StartPicture, width: int, height: int, generators: Sequence[torch.Generator],
    savings: DrawSavings,
) -> StartLatents:   # fmt: skip
    return start_latents(model, start, width, height, _noise(model, width, height, generators), savings)


def _from_small(
    model: BaseModel, request: DrawRequest, latents: Tensor, size: tuple[int, int],
    generators: Sequence[torch.Generator], savings: DrawSavings,
) -> StartLatents:   # fmt: skip
    """The second pass of the hires fix: what was drawn small, enlarged."""
    noise = _noise(model, *size, generators)
    if request.upscaler == "lanczos":
        pictures = decode_latents(model, latents, savings)
        large = torch.cat([encode_picture(model, fitted(small, *size), savings) for small in pictures])
    else:
        large = F.interpolate(latents.float(), size=noise.shape[-2:], mode="bilinear", antialias=True)
    return StartLatents(large.to(noise.dtype), noise, request.upscale_strength, steps=request.upscale_steps)


def _noise(model: BaseModel, width: int, height: int, generators: Sequence[torch.Generator]) -> Tensor:
    factor = model.pipeline.vae_scale_factor
    shape = (model.unet.config.in_channels, height // factor, width // factor)
    noise = torch.stack([torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators])
    return noise.to(model.device, model.dtype)


def _apply_mix(
    model: BaseModel, mix: Mix | Fusion, merges: MergeCache, savings: DrawSavings, components: Collection[str]
) -> AbstractContextManager[None]:
    """The adapters of some components, merged where that is possible: merging costs nothing per step."""
    if isinstance(mix, Fusion):
        return mount_fusion(model.models(), mix)
    part = mix.restrict(components)
    attach = merges.merge if not savings.mount and model.mergeable and can_merge(model.models(), part) else mount
    return attach(model.models(), part)


def _throttled(
    latent_preview: LatentPreview, show: Callable[[list[Image.Image]], None]
) -> Callable[[Tensor], None]:
    """Show what the sampler takes the latents to be, at the first step and then a few times a second."""
    last = -LATENT_PREVIEW_SECONDS

    def preview(latents: Tensor) -> None:
        """Show a preview, unless the last one is too recent."""
        nonlocal last
        if (now := time.monotonic()) - last >= LATENT_PREVIEW_SECONDS:
            last = now
            show(latent_preview.to_pictures(latents))

    return preview


def prompt_arguments(
    model: BaseModel, request: DrawRequest, mix: Mix | Fusion, cache: DrawCache, *, each: bool
) -> dict[str, Any]:
    """The pipeline's prompt arguments as embeddings, so that the text encoders can be offloaded.

    ``each``: encoded once for every picture, where adapters make each picture's embedding different.
    """
    texts = (request.prompt, request.negative, request.unwanted)
    adapted = _adapts_text(mix)
    copies = request.count if each and adapted else 1
    reading = PromptReading(request.prompt_syntax, request.clip_skip, cache.inversions)
    if adapted:
        others = {name for adapters, _ in _active(mix) for name in adapters.components()} - {"unet"}
        # They come first: weights are merged where the encoders are, and these go when they have been asked.
        attached = _apply_mix(model, common_parts(mix), cache.text_merges, cache.savings, others)
        with model.on_device(*model.text_encoders), attached:
            prompt, negative, unwanted = encode_prompts(model, texts, reading, copies)
    else:
        prompt, negative, unwanted = cache.encode_prompts(model, texts, reading)
    words = first_encoder_tokens(model, request.unwanted, reading)
    features = prompt.features
    if words and request.unwanted_strength:
        # Only the words count: start and end tokens are the same in every text.
        directions = unwanted.features[0, 1:-1][:words]
        features = remove_directions(features, directions, request.unwanted_strength)
    lengthened = same_length(model, [PromptEmbeddings(features), negative], reading)
    arguments: dict[str, Any] = {
        "prompt_embeds": lengthened[0].features, "negative_prompt_embeds": lengthened[1].features}   # fmt: skip
    if prompt.pooled is not None and negative.pooled is not None:
        arguments |= {"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    return {name: tensor.repeat_interleave(request.count // copies, 0) for name, tensor in arguments.items()}


def _adapts_text(mix: Mix | Fusion) -> bool:
    """Whether an active adapter changes a text encoder."""
    return any(strength and adapters.components() != {"unet"} for adapters, strength in _active(mix))


def _active(mix: Mix | Fusion) -> Iterable[tuple[AdapterSet, float]]:
    return mix.active() if isinstance(mix, Mix) else ((part.adapters, part.strength) for part in mix.parts)


def draw_latents(model: BaseModel, prompts: Sequence[str], *, steps: int, seed: int) -> Tensor:
    """Draw one picture for each prompt with the base model alone; returns latents ``[B, C, h, w]`` on the CPU.

    With DDIM, whatever the default elsewhere: so prior pictures that were drawn earlier stay valid. A distilled model
    draws as it was made for.
    """
    few = model.info.few_steps
    sampler = new_sampler(model.scheduler, few.sampler, few.schedule) if few else new_sampler(model.scheduler, "ddim")
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.inference_mode(), using_sampler(model.pipeline, sampler):
        with model.on_device(*model.text_encoders):
            embeddings = model.pipeline.encode_prompt(
                prompt=list(prompts), device=model.device, num_images_per_prompt=1, do_classifier_free_guidance=True)
        latents = model.pipeline(
            **dict(zip(names, embeddings, strict=False)),
            num_inference_steps=few.steps if few else steps,
            guidance_scale=few.guidance if few else GUIDANCE,
            generator=picture_generators(seed, len(prompts)),
            output_type="latent",
        ).images
    return latents.cpu().float().clone()


def picture_generators(seed: int, count: int, step: int = 1) -> list[torch.Generator]:
    """One generator a picture: picture i starts from the same noise whether it is drawn alone or in a batch."""
    return [torch.Generator("cpu").manual_seed(seed + step * i) for i in range(count)]


def _enlarged(model: BaseModel, request: DrawRequest, width: int, height: int) -> tuple[int, int]:
    """The size of the second pass: the nearest that the model can draw."""
    multiple = model.info.size_multiple
    wide, high = (max(round(side * request.upscale / multiple), 1) * multiple for side in (width, height))
    return wide, high


def picture_size(model: BaseModel, request: DrawRequest) -> tuple[int, int]:
    """Width and height in pixels; a size that the model can't draw is a SettingError."""
    width, height = (side or model.info.resolution for side in (request.width, request.height))
    multiple = model.info.size_multiple
    if width % multiple or height % multiple:
        raise SettingError(f"The size is {width}×{height}, but this base model needs multiples of {multiple}.")
    return width, height
