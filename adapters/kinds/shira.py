"""Sparse adapters: a few entries of the weight change, the others never do; SHiRA is the plain one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, BaseStatistics, Spec
from atelier.adapters.core.settings import Settings, setting


class SparseAdapter(Adapter):
    """ΔW = values at ``index``, the flat positions of a matrix of :meth:`area` entries; 0 elsewhere.

    A kind says how many and which. The positions are drawn at random here; a kind that chooses them from the base
    model replaces them at the start. They are kept in the file: another torch draws other random numbers.
    """

    index: Tensor

    def __init__(self, spec: Spec, settings: Settings, count: int) -> None:
        super().__init__(spec, settings)
        self.values = nn.Parameter(torch.zeros(count))
        area = self.position_count(spec)
        self.register_buffer("index", _positions(area, count))

    @classmethod
    def position_count(cls, spec: Spec) -> int:
        """Number of positions there are to choose from."""
        return spec.rows * spec.columns

    def select_largest(self, score: Tensor) -> None:
        """Take the positions where ``score [rows, columns]`` is largest."""
        self.index.copy_(score.flatten().topk(len(self.values)).indices.sort().values)

    def scatter_values(self, values: Tensor) -> Tensor:
        """``values`` at their positions, ``[area]``."""
        return torch.zeros(self.position_count(self.spec), dtype=values.dtype, device=values.device).scatter(
            0, self.index.long(), values
        )

    def entries(self) -> tuple[Tensor, Tensor] | None:
        """Flat positions in W and their changes ``[count]`` each, where ΔW is nothing but these."""
        return None

    @property
    def reads_weight(self) -> bool:
        """False: positions and values are in the file."""
        return False

    def delta(self, weight: Tensor) -> Tensor:
        """The values at their positions, zero elsewhere, in the shape of ``weight``."""
        return self.scatter_values(self.values).reshape(weight.shape)


def _positions(area: int, count: int) -> Tensor:
    """Draw ``count`` of ``area`` positions without repetition, ascending."""
    if torch.get_default_device().type == "meta":   # only shapes are asked for, and `unique` has none there
        return torch.empty(count, dtype=torch.int)
    # In memory for the drawn alone: some layers have 30 million entries.
    drawn = torch.randint(area, (2 * count,)).unique() if 4 * count < area else torch.arange(area)
    return drawn[torch.randperm(len(drawn))[:count]].sort().values.int()


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseSettings(Settings):
    """How many entries a sparse adapter has."""

    rank: int = setting(4, "Train as many values as a LoRA of this rank has.", low=1, high=1024)

    def count(self, spec: Spec) -> int:
        """Number of entries in one module."""
        return min(self.rank * (spec.rows + spec.columns), spec.rows * spec.columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiraSettings(SparseSettings):
    """Settings of a sparse high-rank adapter."""

    mask: str = setting("magnitude", "Which entries are trained: random ones, the largest |W|, the largest gradient, "
                                     "the largest |W·gradient| (SNIP), or the diagonal and whole columns.",
                        choices=("random", "magnitude", "gradient", "snip", "structured"))


class Shira(SparseAdapter):
    """ΔW = values at chosen entries   (SHiRA, Bhardwaj et al. 2024, arXiv 2406.13175).

    Shapes: ``values [count]``, ``index [count]``, the flat positions in W.
    Parameters: min(rank · (rows + columns), rows · columns). Start: ``values`` zero, so ΔW = 0.
    Of high rank, and two of them that share few positions hardly disturb each other.
    ``structured``: the diagonal, then columns at equal distances, each whole but the last.
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
        """``gradient`` for the two masks that look at it, else empty."""
        return "gradient" if settings.mask in ("gradient", "snip") else ""

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
            case "structured":
                self.select_largest(_diagonal_and_columns(self.spec))


def _diagonal_and_columns(spec: Spec) -> Tensor:
    """Scores ``[rows, columns]``: highest on the diagonal, then column by column in an order that spreads them."""
    columns = torch.arange(spec.columns)
    # The golden ratio's multiples fill the unit interval evenly, however many are taken.
    order = ((columns + 1) * 0.6180339887498949 % 1).argsort().argsort()
    score = -(order * spec.rows)[None] - torch.arange(spec.rows)[:, None]
    return score.masked_fill(torch.eye(spec.rows, spec.columns, dtype=torch.bool), 1)
