"""Prompts of regions: read by the text encoders, each with the adapters that act in its region and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from atelier.adapters.core.mix import Mix
from atelier.adapters.fusion.live import Fusion, RegionText, UNetPass, mount_fusion
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.sampling.draw_cache import DrawCache, encode_prompts
from atelier.training.sampling.prompt_encoding import PromptReading, same_length


def common_parts(mix: Mix | Fusion) -> Mix | Fusion:
    """What reads the drawing's own prompt: all adapters but those whose region has a prompt."""
    if isinstance(mix, Mix) or not any(part.prompt for part in mix.parts):
        return mix
    return replace(mix, parts=tuple(part for part in mix.parts if not part.prompt))


def with_region_texts(
    model: BaseModel, mix: Fusion, cache: DrawCache, prompts: dict[str, Any], reading: PromptReading, negative: str
) -> tuple[Fusion, dict[str, Any]]:
    """Read the prompts of regions.

    Args:
        model: the base model.
        mix: what acts, and the regions.
        cache: of what was read before.
        prompts: the pipeline's arguments, with the drawing's own prompts.
        reading: how prompts are read.
        negative: the negative prompt.

    Returns:
        The fusion with them, and ``prompts``, the pipeline's arguments, made as long as the longest of all.
    """
    passes = mix.passes()
    places = [place for place, one in enumerate(passes) if one.prompt]
    read = [text for place in places for text in _read(model, mix, passes[place], negative, reading, cache)]
    names = ("prompt_embeds", "negative_prompt_embeds")
    texts = same_length(model, [*(PromptEmbeddings(prompts[name]) for name in names), *read], reading)
    pairs = zip(texts[2::2], texts[3::2], strict=True)
    count = len(prompts["prompt_embeds"])
    found = {place: _region_text(pair, count) for place, pair in zip(places, pairs, strict=True)}
    lengthened = {name: text.features for name, text in zip(names, texts, strict=False)}
    return replace(mix, texts=tuple(map(found.get, range(len(passes))))), {**prompts, **lengthened}


def _read(
    model: BaseModel, mix: Fusion, one: UNetPass, negative: str, reading: PromptReading, cache: DrawCache
) -> list[PromptEmbeddings]:
    """The negative prompt and that of a region."""
    parts = tuple(replace(mix.parts[i], region=None) for i in one.parts)
    if all(part.adapters.components() <= {"unet"} for part in parts):
        return cache.encode_prompts(model, [negative, one.prompt], reading)
    with model.on_device(*model.text_encoders), mount_fusion(model.models(), Fusion(parts)):
        return encode_prompts(model, [negative, one.prompt], reading)


def _region_text(texts: Sequence[PromptEmbeddings], count: int) -> RegionText:
    """Rows for each picture, the negative ones first."""
    pooled = [text.pooled.repeat_interleave(count, 0) for text in texts if text.pooled is not None]
    return RegionText(torch.cat([text.features.repeat_interleave(count, 0) for text in texts]),
                      torch.cat(pooled) if pooled else None)   # fmt: skip
