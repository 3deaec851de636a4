"""SNELL: a kernel of two thin matrices, of which only the largest entries act."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings

GAIN = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class SnellSettings(RankSettings):
    """Size of the two thin matrices and how much of their kernel acts."""

    rank: int = setting(8, "Coordinates of each row and column, in two halves.", low=2, high=1024)
    sparsity: float = setting(0.5, "Share of the entries that stay as they are.", low=0, high=0.999)


class Snell(Adapter):
    """ΔW = scale · D where |D| is largest, D = K(outs, ins) − K₀   (SNELL, Shen et al. 2024, arXiv 2411.01800).

    K[o, i] = 0.1 · (‖outs₁[o] − ins₁[i]‖ − ‖outs₂[o] − ins₂[i]‖), with two halves of ``outs [2, rows, rank // 2]`` and
    ``ins [2, columns, rank // 2]``; K₀ is the same of the copies that they began as, which the file holds too. The
    ⌊sparsity · rows · columns⌋ smallest |D| do nothing. Parameters: 2 · (rank // 2) · (rows + columns). Start: both as
    their copies, so D = 0 and ΔW = 0. Of full rank; a matrix as large as W is formed in every step.
    Difference: the authors start at K itself, which is a change, and multiply by |K| instead of choosing: at zero that
    gate has no gradient.
    """

    kind = "snell"
    title = "SNELL"
    settings = SnellSettings
    first_outs: Tensor
    first_ins: Tensor

    def __init__(self, spec: Spec, settings: SnellSettings) -> None:
        super().__init__(spec, settings)
        self.scale, self.quiet = settings.scale, int(settings.sparsity * spec.rows * spec.columns)
        outs, ins = (torch.randn(2, n, settings.rank // 2) for n in (spec.rows, spec.columns))
        self.outs, self.ins = nn.Parameter(outs), nn.Parameter(ins)
        self.register_buffer("first_outs", outs.clone())
        self.register_buffer("first_ins", ins.clone())

    @classmethod
    def parameter_count(cls, spec: Spec, settings: SnellSettings) -> int:
        """2 · (rank // 2) · (rows + columns)."""
        return 2 * (settings.rank // 2) * (spec.rows + spec.columns)

    @property
    def reads_weight(self) -> bool:
        """False: the kernel is made of the adapter's own values."""
        return False

    def delta(self, weight: Tensor) -> Tensor:
        """The largest entries of D, in the shape of ``weight``."""
        difference = self.scale * (_kernel(self.outs, self.ins) - _kernel(self.first_outs, self.first_ins))
        if self.quiet:
            threshold = difference.detach().abs().flatten().kthvalue(self.quiet).values
            # At the start all are equal: then every entry has its gradient.
            difference = difference * ((difference.abs() > threshold) | (threshold == 0))
        return difference.reshape(weight.shape)


def _kernel(outs: Tensor, ins: Tensor) -> Tensor:
    near, far = torch.cdist(outs, ins, compute_mode="donot_use_mm_for_euclid_dist")
    return GAIN * (near - far)
