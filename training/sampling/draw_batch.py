"""Drawings of several people, or of several mixes, in one batch: each picture has its own prompt, seed and adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.attach.mount_batch import mount_batch
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.malloc_tuning import trim_memory
from atelier.training.sampling.decode import decode_latents
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.sample import (
    DrawRequest,
    denoise,
    picture_generators,
    picture_size,
    prompt_arguments,
    step_reporter,
)

OWN = ("prompt", "negative", "unwanted", "unwanted_strength", "seed", "count")
"""What the drawings of a batch need not share."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What to draw, and with which adapters."""

    request: DrawRequest
    mix: Mix = Mix()


def shared_settings(request: DrawRequest) -> DrawRequest:
    """The settings that all drawings of a batch must have alike: what can be drawn together compares equal."""
    plain = DrawRequest()
    return replace(request, **{name: getattr(plain, name) for name in OWN})


def draw_batch(
    model: BaseModel,
    drawings: Sequence[Drawing],
    on_step: Callable[[int, int], None] | None = None,
    *,
    cache: DrawCache | None = None,
) -> list[list[Image.Image]]:
    """The pictures of each drawing, as :func:`atelier.training.sampling.sample.draw` makes them one after the other.

    Low-rank adapters cost little more than the base model alone; others are computed picture by picture.

    Raises:
        SettingError: settings differ that a batch must share, or ask for a second pass (hires fix).
        MountError, NotFiniteError: as in `draw`.
    """
    requests = [drawing.request.with_sampler(few=model.info.few_steps) for drawing in drawings]
    _check(requests)
    cache, found = cache or DrawCache(), {}
    with torch.inference_mode():
        prompts = [prompt_arguments(model, request, drawing.mix, cache, each=False)
                   for drawing, request in zip(drawings, requests, strict=True)]   # fmt: skip
        groups = _of_equal_length(prompts)
        for number, group in enumerate(groups):
            def report(done: int, of: int, before: int = number) -> None:
                """Count the steps of all groups."""
                if on_step:
                    on_step(before * of + done, len(groups) * of)

            mixes = [drawings[i].mix for i in group for _ in range(requests[i].count)]
            with mount_batch({"unet": model.unet}, [mix.restrict({"unet"}) for mix in mixes]):
                latents = _denoise_together(model, [requests[i] for i in group], [prompts[i] for i in group], report)
            pictures = iter(decode_latents(model, latents, cache.savings))
            found |= {i: [next(pictures) for _ in range(requests[i].count)] for i in group}
    trim_memory()
    return [found[i] for i in range(len(drawings))]


def _of_equal_length(prompts: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The drawings in groups of equally long prompts: a prompt that is lengthened draws another picture."""
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt["prompt_embeds"].shape[1], []).append(i)
    return list(groups.values())


def _denoise_together(
    model: BaseModel, requests: Sequence[DrawRequest], prompts: Sequence[dict[str, Any]],
    report: Callable[[int, int], None],
) -> Tensor:   # fmt: skip
    """Latents ``[B, C, h, w]`` of all pictures."""
    generators = [one for request in requests for one in picture_generators(request.seed, request.count)]
    joined = {name: torch.cat([prompt[name] for prompt in prompts]) for name in prompts[0]}
    size, reporter = picture_size(model, requests[0]), step_reporter(requests[0], None, report)
    return denoise(model, requests[0], size, None, generators=generators, prompts=joined, on_step=reporter,
                   on_latents=None)   # fmt: skip


def _check(requests: Sequence[DrawRequest]) -> None:
    alike = [shared_settings(request) for request in requests]
    for name in DrawRequest.__dataclass_fields__:
        values = {getattr(request, name) for request in alike}
        if len(values) > 1:
            raise SettingError(f"{name} is {' and '.join(map(repr, sorted(values, key=str)))}, but pictures of one "
                               "batch must have the same. Draw them one after the other.")   # fmt: skip
    if requests[0].upscale > 1:
        raise SettingError("Pictures of one batch can't be drawn in two passes. Draw them one after the other.")
