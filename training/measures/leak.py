"""Leaks: ordinary words that draw the subject, although nobody wrote its trigger word.

What an adapter adds to the prediction for a word, Δ(word) = ε_adapter − ε_base, is compared with what it adds for the
trigger word on the same noise: ⟨Δ(word), Δ(trigger)⟩ / ‖Δ(trigger)‖² is 1 where the word draws the subject as the
trigger word does, and 0 where it draws what it drew before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.training.base_models.base_model import BaseModel
from atelier.training.measures.prediction_change import encode_prompts, predict_prompts

LEAK = 0.5
"""Share of the trigger word's effect from which on a word counts as a leak (docs/training-measures.md)."""
COMPARISON_WORDS = 6
_STOP_WORDS = frozenset("a an and are as at by for from in is it its of on or that the this to with".split())


@dataclass(frozen=True, slots=True)
class WordLeak:
    """What an ordinary word draws since the training."""

    word: str
    share: float     # of the trigger word's effect
    in_captions: bool

    @property
    def leaks(self) -> bool:
        """Whether the word draws the subject."""
        return self.share >= LEAK


def caption_words(captions: Sequence[str], trigger: str) -> list[str]:
    """The ordinary words of captions, in their order, without the trigger word and words like 'of'."""
    found = [word for caption in captions for word in re.findall(r"[^\W\d_]+", caption.lower())]
    taken = {trigger.lower(), *re.findall(r"[^\W\d_]+", trigger.lower())}
    return [word for word in dict.fromkeys(found) if word not in _STOP_WORDS | taken and len(word) > 1]


def measure_leaks(
    model: BaseModel, adapters: AdapterSet, template: str, trigger: str, words: Sequence[str]
) -> list[WordLeak]:
    """How much of the subject each word draws, the most first; beside them stand words that no caption had.

    Args:
        model: the base model.
        adapters: the trained adapter.
        template: a prompt with one ``{}`` for the word.
        trigger: what draws the subject: the trigger word, and the class word with it.
        words: of the captions, the class word among them.
    """
    words = [word for word in words if word not in template.lower().split()]   # these are in every prompt
    others = [thing for thing in model.info.things if thing not in words][:COMPARISON_WORDS]
    prompts = [template.format(word) for word in (trigger, *words, *others)]
    change = _change(model, adapters, prompts)
    subject = change[0]
    shares = [float((one * subject).sum() / subject.square().sum().clamp_min(1e-12)) for one in change[1:]]
    leaks = [WordLeak(word, share, word in words) for word, share in zip((*words, *others), shares, strict=True)]
    return sorted(leaks, key=lambda leak: -leak.share)


@torch.no_grad()
def _change(model: BaseModel, adapters: AdapterSet, prompts: Sequence[str]) -> Tensor:
    """What the adapter adds to each prediction ``[prompts, values]``."""
    base = predict_prompts(model, encode_prompts(model, prompts))
    with mount(model.models(), Mix(((adapters, 1.0),))):
        now = predict_prompts(model, encode_prompts(model, prompts))
    return (now - base).flatten(1)
