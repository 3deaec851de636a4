"""LoKr: sums of Kronecker products, the smaller factor shared between layers if wanted (Compacter)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, BaseStatistics, Spec
from atelier.adapters.core.settings import SettingError, setting
from atelier.adapters.kinds.factorize import largest_divisor
from atelier.adapters.kinds.lora import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LokrSettings(RankSettings):
    """Settings of a Kronecker adapter."""

    rank: int = setting(4, "Rank of the larger factor.", low=1, high=1024)
    factor: int = setting(8, "Maximum side of the smaller factor.", low=2, high=256)
    terms: int = setting(1, "Number of Kronecker products that are summed.", low=1, high=64)
    shared: bool = setting(False, "Layers of the same shape share their smaller factors (Compacter).")
    start: str = setting("random", "Initialization: 'weight' is the best Kronecker sum of W.",
                         choices=("random", "weight"))

    def __post_init__(self) -> None:
        RankSettings.__post_init__(self)
        if self.shared and self.start == "weight":
            raise SettingError("start is 'weight', but layers that share factors can't each start from their own "
                               "weight. Change start, or turn sharing off.")


class SmallFactor(nn.Module):
    """The smaller factors ``small [terms, f_out, f_in]``."""

    def __init__(self, terms: int, f_out: int, f_in: int) -> None:
        super().__init__()
        self.small = nn.Parameter(_random(terms, f_out, f_in))


class Lokr(Adapter):
    """ΔW = scale · Σₜ smallₜ ⊗ (upₜ @ downₜ)   (LoKr: Yeh et al. 2023, arXiv 2309.14859, eq. 6).

    Shapes: ``small [terms, f_out, f_in]``, ``up [terms, rows / f_out, rank]``, ``down [terms, rank, columns / f_in]``,
    where f_out and f_in are the largest divisors of the module's output and input features up to ``factor``; the
    kernel of a convolution belongs to ``down``.
    Parameters: terms · (f_out · f_in + rank · (rows / f_out + columns / f_in)). Start: ``up`` zero.
    ΔW is an exact low-rank pair of rank terms · f_in · rank: [smallₜ ⊗ upₜ] @ [1 ⊗ downₜ].

    ``shared``: one ``small`` for all modules with the same f_out and f_in, as in Compacter (Mahabadi et al. 2021,
    arXiv 2106.04647), whose bottleneck layers themselves cannot be merged and are left out.
    ``weight``: starts at W's best Kronecker sum (Van Loan & Pitsianis 1993; for adapters SoKA, Chong & Qu 2025), its
    larger factors cut to the rank. The file keeps those first factors, the trained ones are what is added to them, and
    the first sum is taken off again, term by term; so ΔW starts at 0 exactly and the base stays as it is.
    Difference: LyCORIS gives up the low rank where it saves nothing, so its files differ from layer to layer.
    """

    kind = "lokr"
    title = "LoKr"
    settings = LokrSettings
    first_small: Tensor
    first_up: Tensor
    first_down: Tensor

    def __init__(self, spec: Spec, settings: LokrSettings, small: SmallFactor | None = None) -> None:
        super().__init__(spec, settings)
        terms, f_out, f_in = _sides(spec, settings)
        self.scale, self.has_first = settings.scale, settings.start == "weight"
        self.common = () if small is None else (small,)   # a tuple: torch must count it once, with the set
        if small is None:
            self.own = SmallFactor(terms, f_out, f_in)
        self.down = nn.Parameter(_random(terms, settings.rank, spec.columns // f_in))
        self.up = nn.Parameter(torch.zeros(terms, spec.rows // f_out, settings.rank))
        if self.has_first:
            factors = {"small": self.small, "up": self.up, "down": self.down}
            for name, factor in factors.items():
                self.register_buffer(f"first_{name}", torch.zeros_like(factor))
            nn.init.zeros_(self.small)
            nn.init.zeros_(self.down)

    @classmethod
    def create_all(cls, specs: Sequence[Spec], settings: LokrSettings) -> tuple[Sequence[Self], dict[str, nn.Module]]:
        """One adapter per module; with ``shared``, one small factor for all modules of the same f_out × f_in."""
        if not settings.shared:
            return super().create_all(specs, settings)
        smalls = {side: SmallFactor(*side) for side in sorted({_sides(spec, settings) for spec in specs})}
        adapters = [cls(spec, settings, smalls[_sides(spec, settings)]) for spec in specs]
        return adapters, {f"{f_out}x{f_in}": small for (_, f_out, f_in), small in smalls.items()}

    @classmethod
    def parameter_count(cls, spec: Spec, settings: LokrSettings) -> int:
        """The formula of the class; a shared small factor is not counted here."""
        terms, f_out, f_in = _sides(spec, settings)
        small = 0 if settings.shared else f_out * f_in
        return terms * (small + settings.rank * (spec.rows // f_out + spec.columns // f_in))

    @classmethod
    def total_count(cls, specs: Sequence[Spec], settings: LokrSettings) -> int:
        """The sum over all modules plus each shared small factor once."""
        sides = {_sides(spec, settings) for spec in specs} if settings.shared else ()
        return super().total_count(specs, settings) + sum(terms * f_out * f_in for terms, f_out, f_in in sides)

    @property
    def small(self) -> Tensor:
        """The smaller factors ``[terms, f_out, f_in]``, wherever they are kept."""
        return (self.common[0] if self.common else self.own).small

    @torch.no_grad()
    def initialize(self, statistics: BaseStatistics) -> None:
        """With ``start = weight``: W's nearest Kronecker sum becomes the fixed first factors."""
        if not self.has_first:
            return
        terms, f_out, f_in = self.small.shape
        rank = self.up.shape[2]
        left, right = kronecker_sum(statistics.matrix() / self.scale, f_out, f_in, terms)
        u, s, v = torch.linalg.svd(right, full_matrices=False)
        root = s[:, :rank].sqrt()
        found = root.shape[1]
        self.first_small[: len(left)] = left
        self.first_up[: len(left), :, :found] = u[:, :, :rank] * root[:, None]
        self.first_down[: len(left), :found] = root[:, :, None] * v[:, :rank]

    def factors(self) -> tuple[Tensor, Tensor]:
        """``up [rows, terms · f_in · rank]`` and its ``down``; three times the rank with first factors."""
        small, up, down = self.small, self.up, self.down
        pieces = [(small, up, down)]
        if self.has_first:   # what is added to a product of three when each of them grows
            first, first_up, whole = self.first_small, self.first_up, self.first_down + down
            pieces = [(small, first_up + up, whole), (first, up, whole), (first, first_up, down)]
        triples = [triple for piece in pieces for triple in zip(*piece, strict=True)]
        one = torch.eye(small.shape[2], dtype=down.dtype, device=down.device)
        ups = [torch.kron(a.contiguous(), b.contiguous()) for a, b, _ in triples]
        downs = [torch.kron(one, c.contiguous()) for _, _, c in triples]
        return torch.cat(ups, 1) * self.scale, torch.cat(downs)


def kronecker_sum(matrix: Tensor, f_out: int, f_in: int, terms: int) -> tuple[Tensor, Tensor]:
    """The ``terms`` Kronecker products whose sum is nearest to ``matrix`` (Van Loan & Pitsianis 1993).

    Returns:
        ``left [terms, f_out, f_in]`` and ``right [terms, rows / f_out, columns / f_in]``; fewer where W has no more.
    """
    rows, columns = matrix.shape
    blocks = matrix.reshape(f_out, rows // f_out, f_in, columns // f_in).transpose(1, 2)
    u, s, v = torch.linalg.svd(blocks.flatten(2).flatten(0, 1), full_matrices=False)
    root = s[:terms].sqrt()
    left = (u[:, :terms] * root).T.reshape(-1, f_out, f_in)
    return left, (root[:, None] * v[:terms]).reshape(-1, rows // f_out, columns // f_in)


def _sides(spec: Spec, settings: LokrSettings) -> tuple[int, int, int]:
    """Terms and the two sides of the smaller factor."""
    return settings.terms, largest_divisor(spec.rows, settings.factor), largest_divisor(spec.features, settings.factor)


def _random(terms: int, rows: int, columns: int) -> Tensor:
    """Kaiming-uniform matrices with a = √5, as LoRA's ``down``."""
    bound = columns**-0.5
    return torch.empty(terms, rows, columns).uniform_(-bound, bound)
