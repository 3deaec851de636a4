"""SHiRA: a few entries of the weight are trained, the others never are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import BaseStatistics, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.sparse.sparse_adapter import SparseAdapter, SparseSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiraSettings(SparseSettings):
    """Settings of a sparse high-rank adapter."""

    mask: str = setting("magnitude", "Which entries are trained: random ones, the largest |W|, the largest gradient, "
                                     "the largest |W·gradient| (SNIP), the diagonal and whole columns, or those that "
                                     "move most in a short training of all weights (LT-SFT).",
                        choices=("random", "magnitude", "gradient", "snip", "structured", "movement"))


class Shira(SparseAdapter):
    """ΔW = values at chosen entries   (SHiRA, Bhardwaj et al. 2024, arXiv 2406.13175).

    Shapes: ``values [count]``, ``index [count]``, the flat positions in W.
    Parameters: min(rank · (rows + columns), rows · columns). Start: ``values`` zero, so ΔW = 0.
    Of high rank, and two of them that share few positions hardly disturb each other.
    ``structured``: the diagonal, then columns at equal distances, each whole but the last.
    ``movement`` is composable sparse fine-tuning (LT-SFT, Ansell et al. 2021, arXiv 2110.07560): all weights are
    trained for a few updates, those that moved most are noted and everything is put back; two such adapters are meant
    to be added. Its first phase is 16 updates here, not a whole training, and each layer has its own count.
    Difference: the authors count in percent of the weights; a LoRA's rank makes kinds comparable at equal size.
    """

    kind = "shira"
    title = "SHiRA"
    settings = ShiraSettings

    def __init__(self, spec: Spec, settings: ShiraSettings) -> None:
        super().__init__(spec, settings, settings.count(spec))
        self.mask = settings.mask

    @classmethod
    def parameter_count(cls, spec: Spec, settings: ShiraSettings) -> int:
        """min(rank · (rows + columns), rows · columns)."""
        return settings.count(spec)

    def entries(self) -> tuple[Tensor, Tensor]:
        """Flat positions in W and their changes."""
        return self.index, self.values

    @classmethod
    def required_statistics(cls, settings: ShiraSettings) -> str:
        """``gradient`` for the two masks that look at it, ``movement`` for its own, else empty."""
        return "gradient" if settings.mask in ("gradient", "snip") else "movement" * (settings.mask == "movement")

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """Choose the positions by the mask's score; random ones are drawn already."""
        match self.mask:
            case "magnitude":
                self.select_largest(statistics.matrix().abs())
            case "gradient":
                self.select_largest(statistics.gradient_matrix().abs())
            case "snip":
                self.select_largest((statistics.matrix() * statistics.gradient_matrix()).abs())
            case "movement":
                assert statistics.movement is not None
                self.select_largest(statistics.movement)
            case "structured":
                self.select_largest(_diagonal_and_columns(self.spec))


def _diagonal_and_columns(spec: Spec) -> Tensor:
    """Scores ``[rows, columns]``: highest on the diagonal, then column by column in an order that spreads them."""
    columns = torch.arange(spec.columns)
    # The golden ratio's multiples fill the unit interval evenly, however many are taken.
    order = ((columns + 1) * 0.6180339887498949 % 1).argsort().argsort()
    score = -(order * spec.rows)[None] - torch.arange(spec.rows)[:, None]
    return score.masked_fill(torch.eye(spec.rows, spec.columns, dtype=torch.bool), 1)
