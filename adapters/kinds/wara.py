"""WaRA: one low-rank pair for every wavelet sub-band of the update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.lora import RankSettings
from atelier.kernels.factor_forms import Factor, dense_factors
from atelier.kernels.wavelet import WAVELETS, HaarFactor, padded_width, synthesize_averages, synthesize_details

BANDS = ("all", "smooth", "details")


@dataclass(frozen=True, kw_only=True, slots=True)
class WaraSettings(RankSettings):
    """Settings of a wavelet adapter."""

    rank: int = setting(2, "Rank of each detail band. There are three per level.", low=1, high=1024)
    smooth_rank: int = setting(0, "Rank of the smooth band. 0 means the same rank.", low=0, high=1024)
    levels: int = setting(1, "Number of levels: how often the resolution is halved.", low=1, high=6)
    wavelet: str = setting("haar", "Wavelet. Longer ones are smoother.", choices=tuple(WAVELETS))
    bands: str = setting("all", "Which sub-bands are trained.", choices=BANDS)


class Wara(Adapter):
    """ΔW = scale · Sᵣᵀ C S_c, with ``up @ down`` in every sub-band of C   (after WaRA, arXiv 2506.24092).

    S_r and S_c are orthonormal wavelet transforms of the output rows and of the input features, for every tap of a
    kernel alike; widths that can't be halved ``levels`` times are padded and the update is cropped. At level j the
    bands (rows smooth, features detail), (detail, smooth), (detail, detail) have ``up_j [3, rows/2ʲ, rank]`` and
    ``down_j [3, features/2ʲ · taps, rank]``; the smooth band has ``up_0``, ``down_0`` at the last level.
    Parameters: (bands != "smooth") · sum(3 · rank · cut(j) for j in range(1, levels + 1)) + (bands != "details") ·
    (smooth_rank or rank) · cut(levels). There cut(j) = (padded rows + padded features · taps) / 2ʲ.
    Start: all ``up`` zero, so ΔW = 0; ``down`` Kaiming-uniform with a = √5, so the transform keeps LoRA's gradients.
    Transforming the factors instead of their product makes it an exact LoRA of rank (3·levels + 1)·rank.
    Difference: in the paper's figure one pair serves all bands; with Haar the transform then cancels and leaves the
    Kronecker product (up @ down) ⊗ 1. Separate pairs follow its abstract. Neighbouring channels of a UNet mean little
    by themselves, so what a band is good for is a question for a benchmark.
    """

    kind = "wara"
    title = "WaRA"
    settings = WaraSettings

    def __init__(self, spec: Spec, settings: WaraSettings) -> None:
        super().__init__(spec, settings)
        self.scale, self.wavelet, self.levels = settings.scale, settings.wavelet, settings.levels
        self.bands = settings.bands
        if settings.bands != "details":
            self._add(0, (), settings.smooth_rank or settings.rank, settings.levels)
        if settings.bands != "smooth":
            for level in range(1, settings.levels + 1):
                self._add(level, (3,), settings.rank, level)

    def _add(self, name: int, count: tuple[int, ...], rank: int, level: int) -> None:
        rows, columns = _cut(self.spec, self.levels, level)
        bound = columns**-0.5
        self.register_parameter(f"up_{name}", nn.Parameter(torch.zeros(*count, rows, rank)))
        self.register_parameter(
            f"down_{name}", nn.Parameter(torch.empty(*count, columns, rank).uniform_(-bound, bound))
        )

    @classmethod
    def parameter_count(cls, spec: Spec, settings: WaraSettings) -> int:
        """rank · (rows + columns) of every trained band: the formula of the class."""
        levels = settings.levels
        low = sum(_cut(spec, levels, levels)) * (settings.smooth_rank or settings.rank)
        high = sum(3 * settings.rank * sum(_cut(spec, levels, j)) for j in range(1, levels + 1))
        return low * (settings.bands != "details") + high * (settings.bands != "smooth")

    def factors(self) -> tuple[Tensor, Tensor]:
        """All bands' factors, transformed back and cropped: ``up [rows, r]``, ``down [r, columns]``."""
        up, down = (self._back(side) for side in ("up", "down"))
        down = down.reshape(-1, self.spec.taps, down.shape[1])[: self.spec.features].flatten(0, 1)
        return self.scale * up[: self.spec.rows], down.T

    def structured_factors(self) -> tuple[Factor, Factor]:
        """For one level of Haar over all bands the factors as they are stored, else dense ones."""
        if (self.levels, self.wavelet, self.bands) != (1, "haar", "all"):
            return dense_factors(self.factors())
        up, down = ((getattr(self, f"{side}_0"), getattr(self, f"{side}_1")) for side in ("up", "down"))
        scaled = (self.scale * up[0], self.scale * up[1])
        return (HaarFactor(scaled, (False, False, True, True), self.spec.rows),
                HaarFactor(down, (False, True, False, True), self.spec.columns, self.spec.taps))

    def _back(self, side: str) -> Tensor:
        """All bands of one side, transformed back: ``[padded width, ranks]``."""
        taps = self.spec.taps if side == "down" else 1
        average, detail = synthesize_averages, synthesize_details
        bands = {"up": (average, average, detail, detail), "down": (average, detail, average, detail)}[side]
        parts = [] if self.bands == "details" else [getattr(self, f"{side}_0")]
        for level in range(self.levels, 0, -1):
            details = () if self.bands == "smooth" else tuple(getattr(self, f"{side}_{level}"))
            known = [(bands[0], part) for part in parts] + list(zip(bands[1:], details, strict=bool(details)))
            parts = [torch.cat([way(p.unflatten(0, (-1, taps)), self.wavelet).flatten(0, 1) for way, p in known], 1)]
        return parts[0]


def _cut(spec: Spec, levels: int, level: int) -> tuple[int, int]:
    """Rows and columns of a band at ``level``."""
    return padded_width(spec.rows, levels) >> level, (padded_width(spec.features, levels) >> level) * spec.taps
