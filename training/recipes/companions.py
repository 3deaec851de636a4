"""Companions for Break-for-Make: sets of pictures that the half which is not taught keeps learning from.

A content is taught beside three different styles, a style beside three different things, so neither can rely on one
partner (multi-correspondence projection, Xu et al. 2024, arXiv 2403.19456). The authors use pictures of their own; here
the base model draws them. What it draws it knows, so each set is taught under a made-up word: there is something to
learn, and nothing that a person could say is bent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from atelier.adapters.kinds.break_for_make import SplitSettings
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.recipes.prior_preservation import STEPS, fill
from atelier.training.sampling.sample import draw_latents

WORDS = ("vaq", "ruzo", "jilth")   # one for each set
PER_SET = 4
SEED = 500


def draw_companions(model: BaseModel, role: str) -> list[list[Example]]:
    """Let the untouched base model draw the sets that a ``content`` or a ``style`` is taught beside; as latents."""
    return [_draw(model, pairs, SEED + PER_SET * k) for k, pairs in enumerate(companion_captions(model.info, role))]


def companion_captions(info: BaseInfo, role: str) -> Iterator[list[tuple[str, str]]]:
    """For each set, what its pictures are drawn from and what they are taught as."""
    styles, things = _cycle(info.styles, PER_SET), _cycle(info.things, PER_SET)
    for k, word in enumerate(WORDS):
        if role == "content":
            drawn = [(styles[k % len(info.styles)], thing) for thing in things]
            yield [(info.style_caption(style, thing), info.style_caption(word, thing)) for style, thing in drawn]
        else:
            thing = info.things[k % len(info.things)]
            yield [(info.style_caption(style, thing), fill(info.caption, word, thing)) for style in styles]


def role_of(config: TrainConfig) -> str:
    """``content`` or ``style`` where one half of a split adapter is taught; empty for everything else."""
    if config.kind != "split":
        return ""
    settings = SplitSettings.from_dict(config.adapter)
    return "" if settings.role == "both" else settings.role


def captioned(config: TrainConfig) -> TrainConfig:
    """The recipe of a style with a caption for pictures that have none: the way of drawing, not what is drawn."""
    return as_style(config) if role_of(config) == "style" else config


def as_style(config: TrainConfig) -> TrainConfig:
    """A recipe, of whatever kind, for pictures that share a way of drawing; a caption that a person wrote stays."""
    if config.caption:
        return config
    template = identify(config.base).style_template
    return replace(config, caption=template.replace("{style}", "{trigger}").partition(" of ")[0])


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[i % len(values)] for i in range(count)]


def _draw(model: BaseModel, pairs: Sequence[tuple[str, str]], seed: int) -> list[Example]:
    drawn, taught = zip(*pairs, strict=True)
    latents = draw_latents(model, drawn, steps=STEPS, seed=seed)
    side = model.info.resolution
    return [
        Example(latent, torch.zeros_like(latent), row, (side, side, 0, 0, side, side))
        for latent, row in zip(latents, tokenize(model, list(taught)), strict=True)
    ]
