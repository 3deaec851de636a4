"""Ways to let several adapters act at once: by weights alone (one adapter comes out), or live (``fusion.py``).

Methods that come to weights: ``sum``; ``normalised``; ``concat``, the sum with the factors side by side; ``svd``, the
sum cut to a rank; ``dare`` and ``ties``, which drop values before they add. The others are live: ``gated``, ``switch``,
``composite``; and so is any method as soon as an adapter has a curve or a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.low_rank import Change, Limits, lora_of, nearest
from atelier.adapters.fusion.curves import turns
from atelier.adapters.fusion.dare_ties import dropped, trimmed
from atelier.adapters.fusion.gates import GateSet, Record
from atelier.adapters.fusion.live import Fusion, Part
from atelier.adapters.fusion.pairwise import Models, exact_pairs

METHODS = ("sum", "normalised", "gated", "switch", "composite", "dare", "ties", "svd", "concat")
DEFAULT = "sum"   # nothing is clearly better: docs/fusion.md
WEIGHTS = ("sum", "normalised", "dare", "ties", "svd", "concat")   # those that come to weights


def combined(
    models: Models, parts: Sequence[Part], method: str, *, steps: int = 20, gates: GateSet | None = None,
    record: Record | None = None, rank: int = 0,
) -> Mix | Fusion:   # fmt: skip
    """What to draw with: a Mix where it comes to weights, which merge, else a Fusion.

    Args:
        models: the base model.
        parts: the adapters, with strengths, curves and regions.
        method: one of ``METHODS``.
        steps: denoising steps of the drawing, which ``switch`` counts.
        gates: for ``gated``.
        record: takes down what gates do.
        rank: largest of ``svd``; 0: as large as the largest of a single adapter.

    Raises:
        SettingError: there is no such method, or it can't be combined with a region or a curve.
        MountError: an adapter does not fit the base model.
    """
    _check(parts, method, gates)
    # Strength 0 is no adapter: it takes no turn and no share of a mean.
    parts = [part for part in parts if part.strength]
    if method == "normalised":
        parts = _normalised(parts)
    if method == "switch":
        parts = [replace(part, curve=turn) for part, turn in zip(parts, turns(len(parts), steps), strict=True)]
    plain = all(part.curve is None and part.region is None for part in parts)
    if method in ("sum", "normalised") and plain:
        return Mix(tuple((part.adapters, part.strength) for part in parts))
    if method in WEIGHTS and plain:
        return Mix(((as_one(models, parts, method, rank), 1.0),))
    return Fusion(tuple(parts), gates if method == "gated" else None, method == "composite", record)


def _check(parts: Sequence[Part], method: str, gates: GateSet | None) -> None:
    if method not in METHODS:
        raise SettingError(f"There is no method {method!r}. The methods are: {', '.join(METHODS)}.")
    if method == "gated" and gates is None:
        raise SettingError("There are no gates for this base model yet. Use another method, such as sum, or train "
                           "gates with: python -m atelier.training.embedded_base.train_gates.")
    curved, painted = (any(getattr(part, name) is not None for part in parts) for name in ("curve", "region"))
    if curved and method in ("switch", "dare", "ties", "svd", "concat"):
        raise SettingError(f"{method} decides by itself when and how strongly each adapter acts, so it can't follow "
                           "curves. Use sum, normalised, gated or composite, or reset the curves.")
    if painted and method in ("composite", "dare", "ties", "svd", "concat"):
        raise SettingError(f"{method} can't follow painted regions. Use sum, normalised, gated or switch, or clear the "
                           "regions.")


def _normalised(parts: Sequence[Part]) -> list[Part]:
    """Strengths that add up to 1 at most, in size."""
    whole = max(1.0, sum(abs(part.strength) for part in parts))
    return [replace(part, strength=part.strength / whole) for part in parts]


def is_one_file(parts: Sequence[Part], method: str) -> bool:
    """Whether one adapter file does the same, at every step and for every picture."""
    constant = all(part.curve is None and part.region is None for part in parts)
    alive = any(adapter.live for part in parts if part.strength for adapter in part.adapters)
    return method in WEIGHTS and constant and not alive


@torch.no_grad()
def as_one(models: Models, parts: Sequence[Part], method: str, rank: int = 0) -> AdapterSet:
    """One adapter that does what the method does, for those of ``WEIGHTS``.

    Raises:
        SettingError: the method needs more than weights.
        MountError: an adapter does not fit the base model.
    """
    if not is_one_file(parts, method):
        raise SettingError("A mix that changes with the timestep, the picture or the position can't be one file. Use "
                           f"one of {', '.join(WEIGHTS)}, without curves or regions.")
    chosen = _normalised(parts) if method == "normalised" else parts
    mix = Mix(tuple((part.adapters, part.strength) for part in chosen if part.strength))
    if method in ("dare", "ties"):
        return (dropped if method == "dare" else trimmed)(models, mix)
    pairs = exact_pairs(models, mix)
    if method == "svd":
        limits = Limits(rank=rank or _largest_rank(models, mix))
        pairs = {spec: nearest(Change(spec, pair), limits)[0] for spec, pair in pairs.items()}
    return lora_of(pairs)


def _largest_rank(models: Models, mix: Mix) -> int:
    """Of any layer of any one of the adapters."""
    return max(len(down) for part in mix.parts for _, down in exact_pairs(models, Mix((part,))).values())
