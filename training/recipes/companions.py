"""Companions for Break-for-Make: sets of pictures that the other half, which is not the run's own, learns from.

A content is trained together with three different styles, a style with three different things, so neither can rely on
one partner (multi-correspondence projection, Xu et al. 2024, arXiv 2403.19456). The authors use pictures of their own;
here the base model draws them. What it draws it knows already, so the captions of each set hold a made-up word: there
is something to learn, and no word that a person might use changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from atelier.adapters.kinds.break_for_make import BreakForMakeSettings
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.identify import identify
from atelier.training.config.caption_template import fill_template
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.recipes.prior_preservation import PRIOR_STEPS, drawn_examples
from atelier.training.sampling.sample import draw_latents

TRIGGER_WORDS = ("vaq", "ruzo", "jilth")   # one for each set
PER_SET = 4
SEED = 500


def draw_companions(model: BaseModel, role: str, resolution: int = 0) -> list[list[Example]]:
    """Let the base model alone draw the sets that a ``content`` or a ``style`` is trained with, at a resolution."""
    sets = enumerate(companion_captions(model.info, role))
    return [_draw(model, pairs, SEED + PER_SET * k, resolution) for k, pairs in sets]


def companion_captions(info: BaseInfo, role: str) -> Iterator[list[tuple[str, str]]]:
    """For each set, pairs of the prompt a picture is drawn from and the caption it is trained with."""
    styles, things = _cycle(info.styles, PER_SET), _cycle(info.things, PER_SET)
    for k, word in enumerate(TRIGGER_WORDS):
        if role == "content":
            style = styles[k % len(info.styles)]
            yield [(info.style_caption(style, thing), info.style_caption(word, thing)) for thing in things]
        else:
            thing = info.things[k % len(info.things)]
            plain = fill_template(info.caption, trigger=word, subject=thing)
            yield [(info.style_caption(style, thing), plain) for style in styles]


def role_of(config: TrainConfig) -> str:
    """``content`` or ``style`` where one half of a split adapter is trained; empty for everything else."""
    if config.kind != "split":
        return ""
    settings = BreakForMakeSettings.from_dict(config.adapter)
    return "" if settings.role == "both" else settings.role


def with_role_caption(config: TrainConfig) -> TrainConfig:
    """The recipe; where it trains a style, with a default caption that names the style and not what is drawn."""
    return with_style_caption(config) if role_of(config) == "style" else config


def with_style_caption(config: TrainConfig) -> TrainConfig:
    """The recipe, of any kind, with a default caption for pictures in one style; a caption that is set stays."""
    if config.caption:
        return config
    template = identify(config.base, config.base_options).style_template
    return replace(config, caption=template.replace("{style}", "{trigger}").partition(" of ")[0])


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[i % len(values)] for i in range(count)]


def _draw(model: BaseModel, pairs: Sequence[tuple[str, str]], seed: int, resolution: int) -> list[Example]:
    prompts, captions = zip(*pairs, strict=True)
    latents = draw_latents(model, prompts, steps=PRIOR_STEPS, seed=seed)
    return drawn_examples(model, list(latents), captions, resolution)
