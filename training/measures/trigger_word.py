"""Trigger words: how much a made-up word means to a base model, and which ones mean nothing.

To a text encoder few made-up words mean nothing. One with a meaning, such as "inkz", changes what the base draws before
anything was trained. A single adapter learns to live with that; a second adapter has never seen the word, and what it
was trained on is then not drawn beside it. A *neutral* word changes next to nothing; the *effect* of a word is how much
it changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.latent_cache import encode_text, tokenize

MAX_EFFECT = 0.2
"""Effect from which on a word does harm: of 34 words on the embedded base, the judge still saw things beside all below
it, and beside two of the others."""
THINGS = 4                 # of the base's own, that the word is combined with
TIMESTEPS = (0.999, 0.85, 0.7)   # as shares of the schedule: what a picture shows is decided early


@torch.no_grad()
def word_effects(model: BaseModel, words: Sequence[str], *, seed: int = 0) -> list[float]:
    """How much each word changes what the base predicts, where 1 is as much as the rest of the prompt does.

    ‖ε(prompt with word) − ε(prompt)‖² / ‖ε(prompt) − ε()‖² on noise, for the word before a thing and in place of a
    style; the larger of both.
    """
    info, things = model.info, model.info.things[:THINGS]
    side = model.unet.config.sample_size
    shape = (len(things), model.unet.config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    with_style = [info.style_caption(info.styles[0], thing) for thing in things]
    without_style = [prompt.replace(f"{info.styles[0]} ", "") for prompt in with_style]

    def before_things(word: str) -> list[str]:
        """Prompts without a style, the word put before each thing."""
        return [prompt.replace(thing, f"{word} {thing}") for prompt, thing in zip(without_style, things, strict=True)]

    def in_place_of_style(word: str) -> list[str]:
        """Prompts with the word where the style's name was."""
        return [prompt.replace(info.styles[0], word) for prompt in with_style]

    changed = [prompts for word in words for prompts in (in_place_of_style(word), before_things(word))]
    with model.on_device(*model.text_encoders):   # for all prompts at once, and gone before the UNet works
        texts = [encode_text(model, tokenize(model, prompts))
                 for prompts in (without_style, [""] * len(things), *changed)]
    expected, unconditional, *predicted = (_predictions(model, noise, text) for text in texts)
    scale = (expected - unconditional).square().mean()
    changes = [float((one - expected).square().mean() / scale) for one in predicted]
    return [max(pair) for pair in zip(changes[::2], changes[1::2], strict=True)]


def neutral_word(info: BaseInfo, like: str, taken: Collection[str] = ()) -> str:
    """The neutral word most like ``like``; empty for a base without known ones, or when all are ``taken``."""
    letters = like.lower()
    free = [word for word in info.neutral_words if word not in taken]
    return min(free, key=lambda word: (word[0] != letters[:1], -len(set(word) & set(letters))), default="")


def trigger_word_warning(model: BaseModel, word: str) -> str:
    """The warning for a trigger word that means something to the base; empty for a neutral one.

    Empty as well on a base without known neutral words: how large an effect does harm was not measured there.
    """
    known = model.info.neutral_words
    if not known or word in known or word_effects(model, [word])[0] < MAX_EFFECT:
        return ""
    return (f"The trigger word {word!r} already means something to the base model. That is fine alone, but in a mix it "
            f"can disturb other adapters. A neutral word, such as {neutral_word(model.info, word)!r}, mixes better.")


def _predictions(model: BaseModel, noise: Tensor, text: PromptEmbeddings) -> Tensor:
    count, side = model.scheduler.config.num_train_timesteps, model.info.resolution
    sizes = [(side, side, 0, 0, side, side)] * len(noise)
    return torch.stack([
        model.predict(noise, torch.full((len(noise),), int(share * count), device=noise.device), text, sizes)
        for share in TIMESTEPS
    ])   # fmt: skip
