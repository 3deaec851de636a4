"""LoRTA: one small tensor for all layers of a shape; every layer is a LoRA cut out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.core.targets import is_output_projection, role
from atelier.adapters.kinds.factorize import largest_divisor
from atelier.adapters.kinds.lora import RankSettings
from atelier.kernels.factor_forms import DenseFactor, Factor, factor_matrices
from atelier.kernels.tensor_networks import KhatriRaoFactor

SPREAD = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class LortaSettings(RankSettings):
    """Settings of a shared tensor adapter."""

    rank: int = setting(32, "Rank, shared by all layers. Even 32 makes a very small file.", low=1, high=4096)
    heads: int = setting(8, "Attention heads of the base model. Each has one factor of its own.", low=1, high=64)


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What the modules of a group have in common."""

    model: int   # features on the side without heads
    wide: int    # features on the side with heads
    taps: int

    @classmethod
    def of(cls, spec: Spec) -> GroupShape:
        """The shape of a module; one with heads on its input side counts as its transpose."""
        turned = is_output_projection(spec.name) and spec.taps == 1
        return cls(*((spec.rows, spec.features) if turned else (spec.features, spec.rows)), spec.taps)


class LortaGroup(nn.Module):
    """The factors all modules of one shape share: ``model [rank, model]``, the others ``[size of the mode, rank]``."""

    heads: nn.Parameter
    layers: nn.Parameter
    roles: nn.Parameter
    taps: nn.Parameter

    def __init__(self, shape: GroupShape, settings: LortaSettings, layers: int, roles: int) -> None:
        super().__init__()
        heads = largest_divisor(shape.wide, settings.heads)
        self.model = nn.Parameter(torch.empty(settings.rank, shape.model))
        nn.init.kaiming_uniform_(self.model, a=5**0.5)
        self.head = nn.Parameter(torch.zeros(shape.wide // heads, settings.rank))
        for name, size in _modes(heads, layers, roles, shape.taps).items():
            self.register_parameter(name, nn.Parameter(1 + SPREAD * torch.randn(size, settings.rank)))


class Lorta(Adapter):
    """ΔW[h·d + e, i, t] = scale · Σᵣ head[e, r] heads[h, r] layers[l, r] roles[m, r] taps[t, r] model[r, i].

    The CP tensor of Hounie et al. 2024 (arXiv 2410.04060) over model dimension, head dimension, heads, layers l and
    matrices m (to_q, to_k …). Modules whose widths agree form a group with one tensor. Where the heads are on the
    input side (to_out, the second layer of a feed-forward) the slice is transposed, so that it can belong to the
    group of its block; a convolution has one more mode, the taps of its kernel.
    Parameters: rank · (features + rows / share(rows, heads) + share(rows, heads) + 1 + 1 + taps · (taps > 1)). The
    two ones are the layers and roles of a group of one; a group of many has the same tensors, longer by these alone.
    Start: ``head`` zero, so ΔW = 0; ``model`` Kaiming-uniform with a = √5.
    Every module is an exact LoRA of rank ``rank``: up = head ∘ heads ∘ layer ∘ role, down = model ∘ taps.
    Difference: the authors' other factors are normal, whose products nearly vanish or have heavy tails; here they are
    1 + 0.02·N(0, 1), so that layers start alike and grow apart.
    """

    kind = "lorta"
    title = "LoRTA"
    settings = LortaSettings

    def __init__(self, spec: Spec, settings: LortaSettings, group: LortaGroup, layer: int, place: int) -> None:
        super().__init__(spec, settings)
        self.scale, self.layer, self.place = settings.scale, layer, place
        self.group = (group,)   # a tuple: torch must count it once, with the set

    @classmethod
    def create_all(cls, specs: Sequence[Spec], settings: LortaSettings) -> tuple[Sequence[Self], dict[str, nn.Module]]:
        """One adapter per module, and one shared CP tensor per group of modules with the same widths."""
        tables = _tables(specs)
        groups = {shape: LortaGroup(shape, settings, max(map(len, roles.values())), len(roles))
                  for shape, roles in tables.items()}
        adapters: dict[str, Self] = {}
        for shape, roles in tables.items():
            for place, members in enumerate(roles.values()):
                for layer, spec in enumerate(members):
                    adapters[spec.name] = cls(spec, settings, groups[shape], layer, place)
        names = {shape: "x".join(map(str, (shape.wide, shape.model, shape.taps))) for shape in groups}
        return [adapters[spec.name] for spec in specs], {names[shape]: group for shape, group in groups.items()}

    @classmethod
    def parameter_count(cls, spec: Spec, settings: LortaSettings) -> int:   # noqa: ARG003
        """0: every value belongs to a shared tensor, which :meth:`total_count` counts."""
        return 0   # nothing of its own: see total_count

    @classmethod
    def total_count(cls, specs: Sequence[Spec], settings: LortaSettings) -> int:
        """Sum of the shared tensors' sizes, rank · (sum of the modes), over all groups."""
        total = 0
        for shape, roles in _tables(specs).items():
            heads = largest_divisor(shape.wide, settings.heads)
            modes = _modes(heads, max(map(len, roles.values())), len(roles), shape.taps)
            total += settings.rank * (shape.model + shape.wide // heads + sum(modes.values()))
        return total

    def structured_factors(self) -> tuple[Factor, Factor]:
        """``up`` and ``down`` as Khatri-Rao products of the group's factors; swapped for output projections."""
        (group,) = self.group
        own = self.scale * group.layers[self.layer] * group.roles[self.place]
        wide = KhatriRaoFactor(group.heads, group.head * own)
        if self.spec.taps > 1:
            return wide, KhatriRaoFactor(group.model.T, group.taps)
        model = DenseFactor(group.model.T)
        return (model, wide) if is_output_projection(self.spec.name) else (wide, model)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The Khatri-Rao products written out: ``up [rows, rank]``, ``down [rank, columns]``."""
        return factor_matrices(*self.structured_factors())


def _tables(specs: Sequence[Spec]) -> dict[GroupShape, dict[str, list[Spec]]]:
    """The groups: by shape, then by role, the modules in the order of the base model."""
    tables: dict[GroupShape, dict[str, list[Spec]]] = {}
    for spec in specs:
        tables.setdefault(GroupShape.of(spec), {}).setdefault(role(spec.name), []).append(spec)
    return tables


def _modes(heads: int, layers: int, roles: int, taps: int) -> dict[str, int]:
    return {"heads": heads, "layers": layers, "roles": roles} | ({"taps": taps} if taps > 1 else {})
