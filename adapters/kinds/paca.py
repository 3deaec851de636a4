"""Whole columns or rows of W: PaCA trains random input columns, S2FT the same channels on both sides of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings, setting
from atelier.adapters.core.targets import is_output_projection


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnSettings(Settings):
    """How much of a weight is trained."""

    rank: int = setting(8, "Number of columns (or rows) that are trained in each layer.", low=1, high=4096)


class Paca(Adapter):
    """ΔW[:, index] = up   (PaCA, Woo et al. 2025, arXiv 2503.01905).

    Shapes: ``up [rows, r]``, ``index [r]`` random columns, r = min(rank, columns).
    Parameters: min(rank, columns) · rows. Start: ``up`` zero, so ΔW = 0. An exact LoRA of rank r.
    In a Linear the trained inputs are picked instead of multiplied, so the backward pass keeps r of them, not all.
    Difference: the authors write the columns into the weight; here the base stays as it is.
    """

    kind = "paca"
    title = "PaCA"
    settings = ColumnSettings
    index: Tensor

    def __init__(self, spec: Spec, settings: ColumnSettings) -> None:
        super().__init__(spec, settings)
        picked = torch.randperm(spec.columns)[: settings.rank].sort().values
        self.up = nn.Parameter(torch.zeros(spec.rows, len(picked)))
        self.register_buffer("index", picked.int())

    @classmethod
    def parameter_count(cls, spec: Spec, settings: ColumnSettings) -> int:
        """min(rank, columns) · rows."""
        return min(settings.rank, spec.columns) * spec.rows

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up [rows, r]`` and the 0/1 matrix ``[r, columns]`` that picks the trained columns."""
        return self.up, _selection_matrix(self.index, self.spec.columns, self.up)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """ΔW x; for a Linear the trained inputs are indexed, so that autograd keeps r columns of x alone."""
        if isinstance(module, nn.Linear):
            return F.linear(x[..., self.index.long()], self.up.to(x.dtype))
        return super().forward(x, module)


class S2ft(Adapter):
    """ΔW[index] = values, or ΔW[:, index] = values where a module hands channels back   (S2FT, arXiv 2412.06289).

    Yang et al. 2024 train the same channels on both sides of a pair: rows of the value projection and columns of the
    output projection, rows of a feed-forward's first layer and columns of its second. Other modules train rows of
    their own. Shapes: ``values [r, columns]`` or ``[r, rows]``, ``index [r]``, r = min(rank, rows) or min(rank,
    columns), and never more than the pair has channels.
    Parameters: min(rank, rows) · columns. Where it trains columns, the other way round.
    Start: ``values`` zero, so ΔW = 0. An exact LoRA of rank r.
    Difference: the authors permute the weights so that the channels lie together; an index does without. Of a gated
    feed-forward (GEGLU) the gate's half stays frozen.
    """

    kind = "s2ft"
    title = "S2FT"
    settings = ColumnSettings
    index: Tensor

    def __init__(self, spec: Spec, settings: ColumnSettings, picked: Tensor) -> None:
        super().__init__(spec, settings)
        self.by_column = is_output_projection(spec.name)
        self.values = nn.Parameter(torch.zeros(len(picked), spec.rows if self.by_column else spec.columns))
        self.register_buffer("index", picked.int())

    @classmethod
    def create_all(cls, specs: Sequence[Spec], settings: ColumnSettings) -> tuple[Sequence[Self], dict[str, nn.Module]]:
        """One adapter per module; the two modules of a pair train the same random channels."""
        channels: dict[str, int] = {}
        for spec in specs:
            own = _side(spec)
            channels[_pair(spec.name)] = min(own, channels.get(_pair(spec.name), own))
        picked = {name: torch.randperm(n)[: settings.rank].sort().values for name, n in channels.items()}
        return [cls(spec, settings, picked[_pair(spec.name)]) for spec in specs], {}

    @classmethod
    def parameter_count(cls, spec: Spec, settings: ColumnSettings) -> int:
        """min(rank, own side) · other side: the class says which side a module trains."""
        return min(settings.rank, _side(spec)) * (spec.rows * spec.columns // _side(spec))

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up [rows, r]`` and ``down [r, columns]``, one of them the 0/1 matrix that picks the channels."""
        picking = _selection_matrix(self.index, _side(self.spec), self.values)
        return (self.values.T, picking) if self.by_column else (picking.T, self.values)


_COUPLED = (".to_v", ".to_out.0", ".v_proj", ".out_proj", ".net.0.proj", ".net.2", ".fc1", ".fc2")


def _pair(name: str) -> str:
    """What the two modules of a pair have in common: their name without what tells them apart."""
    return next((name.removesuffix(end) for end in _COUPLED if name.endswith(end)), name)


def _side(spec: Spec) -> int:
    return spec.columns if is_output_projection(spec.name) else spec.rows


def _selection_matrix(index: Tensor, size: int, like: Tensor) -> Tensor:
    """``[r, size]``, one 1 in each row."""
    return F.one_hot(index.long(), size).to(like.dtype)
