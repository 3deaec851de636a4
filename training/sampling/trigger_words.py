"""Which made-up words a base model passes over: the good trigger words.

To a text encoder few made-up words mean nothing. A loud one, such as "in|k|z", outshouts the rest of the prompt before
anything was taught: alone an adapter learns to live with it, but a second adapter has never seen that word, and what
it was taught is not drawn beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel
from atelier.training.data.latent_cache import encode_text, tokenize

QUIET = 0.2
"""From here on a word does harm: of 34 words on the embedded base, the judge still saw things beside all below it, and
beside two of the others."""
THINGS = 4                 # of the base's own, asked for beside the word
TIMESTEPS = (0.999, 0.85, 0.7)   # as shares of the schedule: what a picture shows is decided early


@torch.no_grad()
def loudness(model: BaseModel, words: Sequence[str], *, seed: int = 0) -> list[float]:
    """How much each word changes what the base answers, where 1 is as much as the rest of the prompt does.

    ‖ε(prompt with word) − ε(prompt)‖² / ‖ε(prompt) − ε()‖² on noise, for the word before a thing and in place of a
    style; the louder of both.
    """
    info, things = model.info, model.info.things[:THINGS]
    side = model.unet.config.sample_size
    shape = (len(things), model.unet.config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    answers = partial(_answers, model, noise)
    named = [info.styled.replace("{style}", info.styles[0]).replace("{subject}", thing) for thing in things]
    bare = [prompt.replace(f"{info.styles[0]} ", "") for prompt in named]
    plain, silent = answers(bare), answers([""] * len(things))
    whole = (plain - silent).square().mean()

    def change(prompts: Sequence[str]) -> float:
        return float((answers(prompts) - plain).square().mean() / whole)

    return [max(change([one.replace(info.styles[0], word) for one in named]),
                change([one.replace(thing, f"{word} {thing}") for one, thing in zip(bare, things, strict=True)]))
            for word in words]   # fmt: skip


def quiet_word(info: BaseInfo, like: str, taken: Collection[str] = ()) -> str:
    """The quiet word that reminds most of ``like``; empty for a base without known ones, or when all are ``taken``."""
    letters = like.lower()
    free = [word for word in info.quiet_words if word not in taken]
    return min(free, key=lambda word: (word[0] != letters[:1], -len(set(word) & set(letters))), default="")


def warning(model: BaseModel, word: str) -> str:
    """What to tell whoever teaches with a loud word; empty for a quiet one.

    Nothing is said on a base without known quiet words: how loud is too loud was not measured there.
    """
    known = model.info.quiet_words
    if not known or word in known or loudness(model, [word])[0] < QUIET:
        return ""
    return (f"The trigger word {word!r} means something to the base model already. Alone the adapter learns to live "
            f"with that; drawn together with others, it pushes their things aside. A word that means nothing yet, "
            f"such as {quiet_word(model.info, word)!r}, mixes better.")


def _answers(model: BaseModel, noise: Tensor, prompts: Sequence[str]) -> Tensor:
    text = encode_text(model, tokenize(model, prompts))
    count, side = model.scheduler.config.num_train_timesteps, model.info.resolution
    sizes = [(side, side, 0, 0, side, side)] * len(prompts)
    return torch.stack([
        model.predict(noise, torch.full((len(prompts),), int(share * count), device=noise.device), text, sizes)
        for share in TIMESTEPS
    ])   # fmt: skip
