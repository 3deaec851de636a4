"""RandLoRA: a full-rank update from random bases of which only the sizes are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.lora import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class RandloraSettings(RankSettings):
    """Settings of a random-basis adapter."""

    rank: int = setting(32, "Rank of each random basis. A higher rank means fewer bases and a smaller file.",
                        low=1, high=1024)


class RandomBases(nn.Module):
    """Random bytes ``wide [longest side, bases · rank]`` and ``narrow [rank, shortest side]``; never trained.

    Bytes, not signs: with a small rank there are too few patterns of signs, and columns that share one cost rank.
    """

    wide: Tensor
    narrow: Tensor

    def __init__(self, long: int, short: int, rank: int) -> None:
        super().__init__()
        wide, narrow = (long, _count(short, rank) * rank), (rank, short)
        self.register_buffer("wide", torch.randint(-127, 128, wide, dtype=torch.int8))
        self.register_buffer("narrow", torch.randint(-127, 128, narrow, dtype=torch.int8))


class Randlora(Adapter):
    """ΔW = scale · Σⱼ wideⱼ · diag(mixⱼ) · narrow · diag(shadesⱼ), or its transpose   (arXiv 2502.00987).

    Albert et al. 2025. All layers cut ``wide`` and ``narrow`` out of one shared pair; the longer side of W is wide's.
    With n = ⌈min(rows, columns) / rank⌉ bases: ``mix [rank, n]``, ``shades [n, min(rows, columns)]``.
    Parameters: bases(min(rows, columns), rank) · (rank + min(rows, columns)). Start: ``mix`` zero, so ΔW = 0;
    ``shades`` 1 / max(rows, columns). Of full rank.
    Difference: the bases are uniform as the authors', but kept as bytes (times √3 / 127, of variance 1) in the file.
    """

    kind = "randlora"
    title = "RandLoRA"
    settings = RandloraSettings

    def __init__(self, spec: Spec, settings: RandloraSettings, bases: RandomBases) -> None:
        super().__init__(spec, settings)
        self.scale = settings.scale * 3 / 127**2   # bytes uniform in ±127 have a variance of 127² / 3
        self.bases = (bases,)   # a tuple: torch must count them once, with the set
        short, long = sorted((spec.rows, spec.columns))
        count = _count(short, settings.rank)
        self.mix = nn.Parameter(torch.zeros(settings.rank, count))
        self.shades = nn.Parameter(torch.full((count, short), 1 / long))

    @classmethod
    def create_all(
        cls, specs: Sequence[Spec], settings: RandloraSettings
    ) -> tuple[Sequence[Self], dict[str, nn.Module]]:
        """One adapter per module, all of them cut from one pair of random bases as large as the largest module."""
        sides = [sorted((spec.rows, spec.columns)) for spec in specs]
        bases = RandomBases(max((long for _, long in sides), default=1), max((short for short, _ in sides), default=1),
                      settings.rank)
        return [cls(spec, settings, bases) for spec in specs], {"bases": bases}

    @classmethod
    def parameter_count(cls, spec: Spec, settings: RandloraSettings) -> int:
        """bases · (rank + shorter side), with bases = ⌈shorter side / rank⌉."""
        short = min(spec.rows, spec.columns)
        return _count(short, settings.rank) * (settings.rank + short)

    @property
    def reads_weight(self) -> bool:
        """False: ΔW is made of the random bases and the trained diagonals alone."""
        return False

    def delta(self, weight: Tensor) -> Tensor:
        """The sum over the bases, transposed where the rows are the shorter side."""
        (bases,), dtype = self.bases, self.mix.dtype
        short, long = sorted((self.spec.rows, self.spec.columns))
        narrow = self.mix[:, :, None] * bases.narrow[:, None, :short].to(dtype) * self.shades
        wide = bases.wide[:long, : self.mix.numel()].to(dtype)
        product = self.scale * wide @ narrow.flatten(0, 1)
        return (product if self.spec.rows == long else product.T).reshape(weight.shape)


def _count(short: int, rank: int) -> int:
    """How many bases it takes to reach full rank."""
    return -(-short // rank)
