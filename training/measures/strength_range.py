"""From which strength on an adapter shows, and up to which it leaves prompts alone that have nothing to do with it.

At each strength, what the adapter changes in the predictions for its own prompt, and for prompts of other things, is
measured in units of what the prompt itself changes (``prediction_change.py``). An adapter shows where its own prompt
changes by :data:`SHOWS` of what it changes at strength 1, and is too strong where others change by :data:`DISTURBS`:
there pictures of anything begin to get spots and coloured backgrounds (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.training.base_models.base_model import BaseModel
from atelier.training.measures.prediction_change import encode_prompts, predict_prompts, relative_changes
from atelier.training.measures.run_measures import other_prompts

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
SHOWS, DISTURBS = 0.25, 0.15


@dataclass(frozen=True, slots=True)
class StrengthEffect:
    """What an adapter changes at one strength, in units of what a prompt changes."""

    strength: float
    own: float      # for its own prompt
    others: float   # for prompts of other things, the median


@torch.no_grad()
def measure_strengths(model: BaseModel, adapters: AdapterSet, prompt: str) -> list[StrengthEffect]:
    """Measure an adapter at each of :data:`STRENGTHS`: on ``prompt``, which has its trigger word, and on others.

    Raises:
        MountError: it does not fit the base model.
    """
    prompts = [prompt, *other_prompts(model), ""]
    base = predict_prompts(model, encode_prompts(model, prompts))
    found = []
    for strength in STRENGTHS:
        with mount(model.models(), Mix(((adapters, strength),))):
            now = predict_prompts(model, encode_prompts(model, prompts[:-1]))
        changes = relative_changes(base[:-1], base[-1:], now)
        found.append(StrengthEffect(strength, float(changes[0]), float(changes[1:].median())))
    return found


def propose_range(effects: Sequence[StrengthEffect]) -> tuple[float, float]:
    """The weakest strength at which an adapter shows, and the strongest at which it is not too strong.

    Both are among the measured ones; 1, for which it was trained, is always within.
    """
    usual = next(effect.own for effect in effects if effect.strength == 1)
    low = next(effect.strength for effect in effects if effect.own >= SHOWS * usual)
    calm = [effect.strength for effect in effects if effect.others < DISTURBS]
    return min(low, 1.0), max([1.0, *calm])
