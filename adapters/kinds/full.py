"""Full fine-tuning: every value of the target layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class FullSettings(Settings):
    """There is nothing to choose."""


class Full(Adapter):
    """ΔW = values   (full fine-tuning; the optimizers ``galore``, arXiv 2403.03507, and ``lisa`` need little memory).

    Shapes: ``values [rows, columns]``.
    Parameters: rows · columns. Start: ``values`` zero, so ΔW = 0. W stays as it is, so that the adapter can be
    taken off, mixed and exported as any other: as full differences (``diff``), or as a LoRA by SVD.
    """

    kind = "full"
    title = "Full (all values)"
    settings = FullSettings

    def __init__(self, spec: Spec, settings: FullSettings) -> None:
        super().__init__(spec, settings)
        self.values = nn.Parameter(torch.zeros(spec.rows, spec.columns))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: FullSettings) -> int:   # noqa: ARG003 (the same for all)
        """rows · columns."""
        return spec.rows * spec.columns

    def delta(self, weight: Tensor) -> Tensor:
        """``values`` in the shape of ``weight``."""
        return self.values.reshape(weight.shape)
