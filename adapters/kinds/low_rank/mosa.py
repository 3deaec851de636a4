"""MoSA: every update trains one part of a LoRA's entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class MosaSettings(RankSettings):
    """Rank, and into how many parts the entries are divided."""

    parts: int = setting(4, "Number of parts. Each update trains one of them.", low=1, high=64)


class Mosa(Adapter):
    """ΔW = scale · up @ down, trained part by part   (MoSA, Zhang et al. 2023, arXiv 2312.02923).

    Shapes: ``up [rows, rank]``, ``down [rank, columns]``. Parameters: rank · (rows + columns). Start: ``up`` zero, so
    ΔW = 0; ``down`` Kaiming-uniform with a = √5. Every entry belongs to one of ``parts`` random sets (``up_part``,
    ``down_part``). Update n trains set n mod ``parts``: the others keep their values and what the optimizer remembers
    of them, so each learns from other batches, as with dropout. A finished training is saved as the LoRA that it is.
    Difference: the authors train a copy for each set and average them at the end, which divides every change by the
    number of sets; and they draw sets at random, which here take turns.
    """

    kind = "mosa"
    title = "MoSA"
    settings = MosaSettings
    saved_as = "lora"
    up_part: Tensor
    down_part: Tensor

    def __init__(self, spec: Spec, settings: MosaSettings) -> None:
        super().__init__(spec, settings)
        self.scale, self.parts = settings.scale, settings.parts
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        for name, factor in (("up_part", self.up), ("down_part", self.down)):
            self.register_buffer(name, torch.randint(settings.parts, factor.shape, dtype=torch.int8))
        self.before: dict[str, Tensor] = {}   # what an update must not reach, while it is made

    @classmethod
    def parameter_count(cls, spec: Spec, settings: MosaSettings) -> int:
        """rank · (rows + columns)."""
        return settings.rank * (spec.rows + spec.columns)

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up`` with the scale, and ``down``."""
        return self.up * self.scale, self.down

    @classmethod
    def before_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Note all values and moments."""
        for adapter in adapters:
            assert isinstance(adapter, Mosa)
            adapter.before = {name: value.detach().clone() for name, value, _ in adapter.state(update)}

    @classmethod
    @torch.no_grad()
    def after_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Put back what does not belong to the part whose turn it is; what the optimizer just made begins at 0."""
        for adapter in adapters:
            assert isinstance(adapter, Mosa)
            for name, value, part in adapter.state(update):
                old = adapter.before.get(name, torch.zeros_like(value))
                value.copy_(torch.where(part == update.step % adapter.parts, value, old))
            adapter.before = {}

    def state(self, update: OptimizerUpdate) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Values of both factors and the optimizer's moments of them, by name, with the parts of their entries."""
        for factor, part in (("up", self.up_part), ("down", self.down_part)):
            parameter = self.get_parameter(factor)
            yield factor, parameter, part
            yield from ((f"{factor} {name}", moment, part) for name, moment in update.moments(parameter))
