"""SURM: updates that are circulant or Toeplitz block by block, of full rank for few values."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class StructuredSettings(Settings):
    """Which pattern repeats along the diagonals."""

    form: str = setting("circulant", "Circulant: each row is the one above, moved round by one. Toeplitz: equal values "
                                     "along each diagonal, twice as many of them.", choices=("circulant", "toeplitz"))


class Structured(Adapter):
    """ΔW[block i, block j] = circulant(values[i, j]), or Toeplitz   (SURM, Sehanobish et al. 2024, arXiv 2406.17740).

    Blocks are g × g with g = gcd(rows, features), for every tap of a kernel one. Shapes: ``values [rows / g,
    features / g, taps, g]``, or 2·g − 1 diagonals for Toeplitz: entry (a, b) of a block is value (a − b) mod g, or
    value a − b + g − 1. Parameters: (rows // gcd(rows, features)) · (features // gcd(rows, features)) · taps ·
    (gcd(rows, features) if form == "circulant" else 2 · gcd(rows, features) − 1). Start: all zero, so ΔW = 0.
    Of full rank and linear in its values. Channels of a UNet have no cyclic order, so it is a fixed full-rank basis
    like RandLoRA's, without anything random to store.
    Difference: the authors multiply two vectors, one of them random, on square layers alone; half of those values add
    nothing, and blocks fit every shape.
    """

    kind = "structured"
    title = "Circulant or Toeplitz (SURM)"
    settings = StructuredSettings

    def __init__(self, spec: Spec, settings: StructuredSettings) -> None:
        super().__init__(spec, settings)
        self.block, self.circulant = gcd(spec.rows, spec.features), settings.form == "circulant"
        diagonals = self.block if self.circulant else 2 * self.block - 1
        shape = spec.rows // self.block, spec.features // self.block, spec.taps, diagonals
        self.values = nn.Parameter(torch.zeros(shape))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: StructuredSettings) -> int:
        """Blocks · taps · diagonals of a block."""
        block = gcd(spec.rows, spec.features)
        diagonals = block if settings.form == "circulant" else 2 * block - 1
        return (spec.rows // block) * (spec.features // block) * spec.taps * diagonals

    @property
    def reads_weight(self) -> bool:
        """False: the shape alone is needed."""
        return False

    def delta(self, weight: Tensor) -> Tensor:
        """Every block written out, in the shape of ``weight``."""
        place = torch.arange(self.block, device=self.values.device)
        diagonal = place[:, None] - place
        diagonal = diagonal % self.block if self.circulant else diagonal + self.block - 1
        return self.values[..., diagonal].permute(0, 3, 1, 4, 2).reshape(weight.shape)
