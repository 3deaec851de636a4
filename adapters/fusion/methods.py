"""Ways to let several adapters act at once: by weights alone (one adapter comes out), or live (``live.py``).

Methods that come to weights: ``sum``; ``normalised``; ``concat``, the sum with the factors side by side; ``svd``, the
sum cut to a rank; ``dare`` and ``ties``, which drop values before they add. The others are live: ``gated``, ``switch``,
``composite``; and so is any method as soon as an adapter has a curve or a region.

Methods of exactly two adapters, a content and a style (``pairwise.py``): ``np``, ``k``, ``break-for-make``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.low_rank import LowRankLimits, WeightChange, lora_with_vectors, nearest_low_rank
from atelier.adapters.fusion.break_for_make_halves import combine_halves, scale_halves
from atelier.adapters.fusion.curves import switch_curves
from atelier.adapters.fusion.dare_ties import dare, ties
from atelier.adapters.fusion.gates import GateRecord, GateSet
from atelier.adapters.fusion.live import Fusion, WeightedAdapter
from atelier.adapters.fusion.pairwise import Models, exact_changes, k_lora, k_lora_mean, np_lora, to_lora

METHODS = ("sum", "normalised", "gated", "switch", "composite", "dare", "ties", "svd", "concat")
DEFAULT_METHOD = "sum"   # nothing is clearly better: docs/fusion.md
PAIR_METHODS = ("np", "k", "break-for-make")   # of two adapters: the first is the content, the second the style
ALL_METHODS = (*METHODS, *PAIR_METHODS)
WEIGHT_METHODS = ("sum", "normalised", "dare", "ties", "svd", "concat")   # those that come to weights


def combine(
    models: Models, parts: Sequence[WeightedAdapter], method: str, *, steps: int = 20, gates: GateSet | None = None,
    record: GateRecord | None = None, rank: int = 0,
) -> Mix | Fusion:   # fmt: skip
    """What to draw with: a Mix where it comes to weights, which merge, else a Fusion.

    Args:
        models: the base model.
        parts: the adapters, with strengths, curves and regions.
        method: one of ``ALL_METHODS``.
        steps: denoising steps of the drawing, which ``switch`` counts.
        gates: for ``gated``.
        record: takes down what gates do.
        rank: largest of ``svd``; 0: as large as the largest of a single adapter.

    Raises:
        SettingError: there is no such method, or it can't be combined with a region or a curve.
        BasisError: ``break-for-make`` needs two halves that fit together.
        MountError: an adapter does not fit the base model.
    """
    _check(parts, method, gates)
    # Strength 0 is no adapter: it takes no turn and no share of a mean.
    parts = [part for part in parts if part.strength]
    if not parts:
        return Mix(())
    if method in PAIR_METHODS:
        return Mix(((_combine_pair(models, parts, method), 1.0),))
    if method == "normalised":
        parts = _normalise(parts)
    if method == "switch":
        parts = [replace(part, curve=turn) for part, turn in zip(parts, switch_curves(len(parts), steps), strict=True)]
    plain = all(part.curve is None and part.region is None for part in parts)
    if method in ("sum", "normalised") and plain:
        return Mix(tuple((part.adapters, part.strength) for part in parts))
    if method in WEIGHT_METHODS and plain:
        return Mix(((fuse_adapters(models, parts, method, rank), 1.0),))
    return Fusion(tuple(parts), gates if method == "gated" else None, method == "composite", record)


def _check(parts: Sequence[WeightedAdapter], method: str, gates: GateSet | None) -> None:
    if method not in ALL_METHODS:
        raise SettingError(f"There is no method {method!r}. The methods are: {', '.join(ALL_METHODS)}.")
    if method == "gated" and gates is None:
        raise SettingError("There are no gates for this base model yet. Use another method, such as sum, or train "
                           "gates with: python -m atelier.training.runs.train_gates.")
    curved, painted = (any(getattr(part, name) is not None for part in parts) for name in ("curve", "region"))
    if curved and method in ("switch", "dare", "ties", "svd", "concat", *PAIR_METHODS):
        raise SettingError(f"{method} decides by itself when and how strongly each adapter acts, so it can't follow "
                           "curves. Use sum, normalised, gated or composite, or reset the curves.")
    if painted and method in ("composite", "dare", "ties", "svd", "concat", *PAIR_METHODS):
        raise SettingError(f"{method} can't follow painted regions. Use sum, normalised, gated or switch, or clear the "
                           "regions.")


def _combine_pair(models: Models, parts: Sequence[WeightedAdapter], method: str) -> AdapterSet:
    """Content and style by a method of two, at their strengths; K-LoRA's choice depends on the timestep."""
    content, style = _require_pair(parts, method)
    if method == "break-for-make":
        if content.adapters.is_scaled or style.adapters.is_scaled:
            raise SettingError("break-for-make joins whole halves, so it can't follow strengths of single blocks. Use "
                               "sum or np, or reset the strengths of the blocks.")
        halves = combine_halves(content.adapters, style.adapters)
        return scale_halves(halves, content=content.strength, style=style.strength)
    first, second = (to_lora(models, part.adapters, part.strength) for part in (content, style))
    return np_lora(models, first, second) if method == "np" else k_lora(models, first, second)


def _require_pair(parts: Sequence[WeightedAdapter], method: str) -> Sequence[WeightedAdapter]:
    if len(parts) != 2:
        raise SettingError(f"{method} combines exactly two adapters, a content and a style, and this mix has "
                           f"{len(parts)}. Add or remove one, or use another method, such as sum.")
    return parts


def _normalise(parts: Sequence[WeightedAdapter]) -> list[WeightedAdapter]:
    """Strengths that add up to 1 at most, in size."""
    whole = max(1.0, sum(abs(part.strength) for part in parts))
    return [replace(part, strength=part.strength / whole) for part in parts]


def can_fuse(parts: Sequence[WeightedAdapter], method: str) -> bool:
    """Whether one adapter file does the same, at every step and for every picture."""
    constant = all(part.curve is None and part.region is None for part in parts)
    alive = any(adapter.live for part in parts if part.strength for adapter in part.adapters)
    pair = method in PAIR_METHODS and sum(bool(part.strength) for part in parts) == 2
    return (method in WEIGHT_METHODS or pair) and constant and not alive


@torch.no_grad()
def fuse_adapters(models: Models, parts: Sequence[WeightedAdapter], method: str, rank: int = 0) -> AdapterSet:
    """One adapter that does what the method does, for those of ``WEIGHT_METHODS`` and ``PAIR_METHODS``.

    That of ``k``, which changes with the timestep, is its mean over all of them.

    Raises:
        SettingError: the method needs more than weights, or every strength is 0.
        BasisError: ``break-for-make`` needs two halves that fit together.
        MountError: an adapter does not fit the base model.
    """
    if method in PAIR_METHODS:
        parts = _require_pair([part for part in parts if part.strength], method)
    if not can_fuse(parts, method):
        raise SettingError("A mix that changes with the timestep, the picture or the position can't be one file. Use "
                           f"one of {', '.join(WEIGHT_METHODS)}, without curves or regions.")
    if method == "k":
        return k_lora_mean(models, *(to_lora(models, part.adapters, part.strength) for part in parts))
    if method in PAIR_METHODS:
        return _combine_pair(models, parts, method)
    chosen = _normalise(parts) if method == "normalised" else parts
    mix = Mix(tuple((part.adapters, part.strength) for part in chosen if part.strength))
    if not mix.parts:
        raise SettingError("Every strength is 0, so the adapter would change nothing. Change at least one strength.")
    if method in ("dare", "ties"):
        return (dare if method == "dare" else ties)(models, mix)
    pairs, vectors = exact_changes(models, mix)
    if method == "svd":
        limits = LowRankLimits(rank=rank or _largest_rank(models, mix))
        pairs = {spec: nearest_low_rank(WeightChange(spec, pair), limits)[0] for spec, pair in pairs.items()}
    return lora_with_vectors(pairs, vectors)


def _largest_rank(models: Models, mix: Mix) -> int:
    """Of any layer of any one of the adapters."""
    ranks = [len(down) for part in mix.parts for _, down in exact_changes(models, Mix((part,)))[0].values()]
    return max((1, *ranks))
