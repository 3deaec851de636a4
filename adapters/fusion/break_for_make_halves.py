"""Content and style halves of the kind ``split``: whether they fit, putting them together, a strength for each."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.low_rank import Pair
from atelier.adapters.kinds.break_for_make import BreakForMake, BreakForMakeSettings

_FREE = ("role",)   # settings in which two halves may differ and still fit


class BasisError(ValueError):
    """Halves that can't be put together; the message says where they differ and what to do."""


def basis_hash(adapters: AdapterSet) -> str:
    """SHA-256 of the frozen halves of all layers: equal where two halves fit together."""
    digest = hashlib.sha256()
    for adapter in sorted(adapters, key=lambda adapter: adapter.spec.name):
        digest.update(f"{adapter.spec.name} {list(adapter.spec.shape)}".encode())
        for name, buffer in adapter.named_buffers():
            digest.update(f"{name} {list(buffer.shape)}".encode() + buffer.float().cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def combine_halves(content: AdapterSet, style: AdapterSet) -> AdapterSet:
    """One adapter with the content's half of ``content`` and the style's half of ``style``, without any training.

    Raises:
        BasisError: one is of another kind or has the other role, or their frozen halves differ.
    """
    for adapters, role in ((content, "content"), (style, "style")):
        if not isinstance(adapters.settings, BreakForMakeSettings):
            raise BasisError(f"The {role} adapter is of the kind {adapters.kind}, but Break-for-Make needs two of the "
                             "kind split. Choose another method, or train it again with the kind split.")
        if adapters.settings.role not in (role, "both"):
            raise BasisError(f"The adapter given as {role} was trained as {adapters.settings.role}. Choose one that "
                             f"was trained as {role}.")
    if differing := _differences(content, style):
        raise BasisError(f"These two adapters don't match: {differing}. Train both with the same settings and base "
                         "model.")
    united = copy.deepcopy(style)
    united.settings = replace(united.settings, role="both")   # type: ignore[type-var]
    for adapter, other in _pairs(united, content):
        adapter.trainable_half("content").copy_(other.trainable_half("content"))
    return united


def _differences(content: AdapterSet, style: AdapterSet) -> str:
    """In what two sets differ that must be the same; empty where they fit."""
    one, two = content.settings.to_dict(), style.settings.to_dict()
    names = [name for name in one if name not in _FREE and one[name] != two[name]]
    if names:
        return ", ".join(f"{name} is {one[name]} in the content and {two[name]} in the style" for name in names)
    layers = {spec.name: spec.shape for spec in content.specs}.items() ^ {s.name: s.shape for s in style.specs}.items()
    if layers:
        return f"they change different layers, such as {min(layers)[0]}"
    return "" if basis_hash(content) == basis_hash(style) else "their frozen halves differ"


@torch.no_grad()
def scale_halves(adapters: AdapterSet, *, content: float, style: float) -> AdapterSet:
    """A copy with each concept's half multiplied by a strength of its own: 0 takes it out, 1 is as trained."""
    scaled = copy.deepcopy(adapters)
    for adapter in scaled:
        assert isinstance(adapter, BreakForMake)
        adapter.disabled_role = ""
        adapter.trainable_half("content").mul_(content)
        adapter.trainable_half("style").mul_(style)
    return scaled


@torch.no_grad()
def strength_terms(adapter: BreakForMake) -> list[tuple[Pair, tuple[int, int]]]:
    """ΔW as a sum of factors, each with the powers of the content's and the style's strength that it is scaled by."""
    up, down = torch.zeros_like(adapter.halves()[0]), torch.zeros_like(adapter.halves()[1])
    rows, columns = len(adapter.frozen_up), adapter.frozen_down.shape[1]
    frozen_up, own_up, frozen_down, own_down = up, up.clone(), down, down.clone()
    frozen_up[:rows], own_up[rows:] = adapter.frozen_up, adapter.up
    frozen_down[:, :columns], own_down[:, columns:] = adapter.frozen_down, adapter.down
    if adapter.faithful:   # B @ E scales as B does
        frozen_down[:, columns:] = adapter.first_down
    of_down, of_up = ((1, 0), (0, 1)) if adapter.content_is_down else ((0, 1), (1, 0))
    scale = adapter.scale
    return [
        ((frozen_up * scale, own_down), of_down),
        ((own_up * scale, frozen_down), of_up),
        ((own_up * scale, own_down), (1, 1)),
    ]


def _pairs(one: AdapterSet, two: AdapterSet) -> list[tuple[BreakForMake, BreakForMake]]:
    """The adapters of two sets of this kind, layer by layer."""
    pairs = [(adapter, two[adapter.spec.name]) for adapter in one]
    return [(a, b) for a, b in pairs if isinstance(a, BreakForMake) and isinstance(b, BreakForMake)]
