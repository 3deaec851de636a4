"""Factors that are tensor networks: products of tables (CP) and tensor trains.

The digits of a width are its indices in a mixed base, the last one fastest: i = (i₁ · n₂ + i₂) · n₃ + i₃.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class KhatriRaoFactor:
    """Entry [i, r] = outer[i₁, r] · inner[i₂, r]: the columns of a CP tensor's factors, multiplied (Khatri-Rao)."""

    outer: Tensor   # [n₁, rank]
    inner: Tensor   # [n₂, rank]

    def matrix(self) -> Tensor:
        """The factor written out, ``[n₁ · n₂, rank]``."""
        return (self.outer[:, None] * self.inner).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class TensorTrainFactor:
    """Entry [i, r] = first[i₁] · middle[i₂] · last[i₃, :, r], a product of a vector and two matrices over the bonds."""

    first: Tensor    # [n₁, bond]
    middle: Tensor   # [n₂, bond, bond]
    last: Tensor     # [n₃, bond, rank]
    turned: bool = False   # the digits run the other way: i = (i₃ · n₂ + i₂) · n₁ + i₁

    def matrix(self) -> Tensor:
        """The factor written out, ``[n₁ · n₂ · n₃, rank]``; nothing on the way is larger."""
        whole = self.first
        for core in (self.middle, self.last):
            step = whole @ core.transpose(0, 1).flatten(1)          # [digits so far, n · next bond]
            step = step.unflatten(1, (len(core), core.shape[2]))    # [digits so far, n, next bond]
            whole = (step.transpose(0, 1) if self.turned else step).flatten(0, 1)
        return whole
