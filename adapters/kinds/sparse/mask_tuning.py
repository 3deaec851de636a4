"""Mask tuning: no weight gets a new value, but some are switched off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import BaseStatistics, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.sparse.sparse_adapter import SparseAdapter, SparseSettings

MARGIN = 0.02   # of every score at the start: 20 updates of 0.001 in one direction switch a weight off


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskTuningSettings(SparseSettings):
    """How many weights may be switched off."""

    rank: int = setting(16, "As many weights may be switched off as a LoRA of this rank has values.", low=1, high=1024)


class MaskTuning(SparseAdapter):
    """ΔW = −W at entries whose score is not above 0   (R-AMT, Zheng et al. 2023, arXiv 2307.15049).

    Shapes: ``values [count]``, the scores, and ``index [count]``, the flat positions in W of those that may be switched
    off: the largest |W · gradient|. Parameters: min(rank · (rows + columns), rows · columns). Start: every score 0.02,
    so nothing is switched off and ΔW = 0. The gradient of a score is that of its entry of ΔW times W, as if the step
    were a straight line. It can take away what the base model does, such as a way of drawing, and can't add anything.
    Left out: the regularization by gradient dropout, which needs the gradient of a second loss by itself.
    Difference: the authors give every weight of the attention a score; here a share that the first gradient points at.
    """

    kind = "mask-tuning"
    title = "Mask tuning"
    settings = MaskTuningSettings

    def __init__(self, spec: Spec, settings: MaskTuningSettings) -> None:
        super().__init__(spec, settings, settings.count(spec))
        nn.init.constant_(self.values, MARGIN)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: MaskTuningSettings) -> int:
        """min(rank · (rows + columns), rows · columns)."""
        return settings.count(spec)

    @classmethod
    def required_statistics(cls, settings: MaskTuningSettings) -> str:   # noqa: ARG003 (the same for all)
        """``gradient``, which chooses the entries."""
        return "gradient"

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Choose the entries where switching off would change the loss most, to first order."""
        self.select_largest((statistics.matrix() * statistics.gradient_matrix()).abs())

    @property
    def reads_weight(self) -> bool:
        """True: what is taken away is W's own."""
        return True

    def delta(self, weight: Tensor) -> Tensor:
        """−W where it is switched off, in the shape of ``weight``."""
        own = weight.detach().flatten()[self.index.long()].to(self.values.dtype)
        is_off = (self.values <= 0).to(own.dtype)
        straight = self.values - self.values.detach()   # 0, with the gradient of the score
        return self.scatter_values(own * (straight - is_off)).reshape(weight.shape)
