"""Sparse in a spectrum: a few coefficients of an orthonormal transform, so that every weight changes a little."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import Spec
from atelier.adapters.core.settings import Settings, setting
from atelier.adapters.kinds.sparse.sparse_adapter import SparseAdapter
from atelier.kernels.wavelet import WAVELETS, padded_width, synthesize_averages, synthesize_details


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectralSettings(Settings):
    """How many coefficients, and how strongly they act."""

    count: int = setting(2592, "Number of coefficients per layer.", low=1, high=1_000_000)
    gain: float = setting(25.0, "Scale of the update. Without it, sparse values stay small.", low=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveftSettings(SpectralSettings):
    """Settings of a sparse wavelet adapter."""

    wavelet: str = setting("haar", "Wavelet. Longer ones are smoother.", choices=tuple(WAVELETS))


class Waveft(SparseAdapter):
    """ΔW = gain · Sᵣᵀ C S_c, C zero but for ``values`` at ``index``   (WaveFT, Bilican et al. 2025, arXiv 2505.12532).

    S_r, S_c: one level of an orthonormal wavelet transform of the output rows and of the input features, for every tap
    of a kernel alike; odd widths are padded and the update is cropped. C holds averages first, then details.
    Parameters: min(count, padded(rows, 1) · padded(features, 1) · taps). Start: ``values`` zero, so ΔW = 0.
    Difference: the positions are random, as in the paper, but kept in the file instead of a seed.
    """

    kind = "waveft"
    title = "WaveFT"
    settings = WaveftSettings

    def __init__(self, spec: Spec, settings: WaveftSettings) -> None:
        super().__init__(spec, settings, self.parameter_count(spec, settings))
        self.gain, self.wavelet = settings.gain, settings.wavelet

    @classmethod
    def position_count(cls, spec: Spec) -> int:
        """Number of coefficients, those of padded rows and features too."""
        return padded_width(spec.rows, 1) * padded_width(spec.features, 1) * spec.taps

    @classmethod
    def parameter_count(cls, spec: Spec, settings: WaveftSettings) -> int:
        """min(count, number of coefficients, padding included)."""
        return min(settings.count, cls.position_count(spec))

    def delta(self, weight: Tensor) -> Tensor:
        """Inverse wavelet transform of the coefficients over rows and features, cropped to ``weight``."""
        spec = self.spec
        packed = self.scatter_values(self.values * self.gain).reshape(padded_width(spec.rows, 1), -1, spec.taps)
        by_row = self._back(packed)[: spec.rows]
        return self._back(by_row.transpose(0, 1))[: spec.features].transpose(0, 1).reshape(weight.shape)

    def _back(self, packed: Tensor) -> Tensor:
        averages, details = packed.chunk(2)
        return synthesize_averages(averages, self.wavelet) + synthesize_details(details, self.wavelet)


@dataclass(frozen=True, kw_only=True, slots=True)
class WhtSettings(SpectralSettings):
    """Settings of a sparse Walsh-Hadamard adapter."""

    gain: float = setting(150.0, "Scale of the update, before division by √rows.", low=0)


class Wht(SparseAdapter):
    """ΔW = gain / √rows · C H, C zero but for ``values`` at ``index``   (QWHA, Jeon et al. 2025, arXiv 2509.17428).

    H: the orthonormal Walsh-Hadamard transform of the input features, for every tap of a kernel alike; only signs.
    Parameters: min(count, rows · columns). Start: ``values`` zero, so ΔW = 0.
    Difference: the authors use Hadamard matrices of special sizes, which some widths lack. Here H is block-diagonal,
    with blocks as large as the largest power of two in the width, and orthonormal for every width.
    """

    kind = "wht"
    title = "Walsh-Hadamard"
    settings = WhtSettings

    def __init__(self, spec: Spec, settings: WhtSettings) -> None:
        super().__init__(spec, settings, self.parameter_count(spec, settings))
        self.gain = settings.gain / spec.rows**0.5

    @classmethod
    def parameter_count(cls, spec: Spec, settings: WhtSettings) -> int:
        """min(count, rows · columns)."""
        return min(settings.count, cls.position_count(spec))

    def delta(self, weight: Tensor) -> Tensor:
        """Walsh-Hadamard transform of the coefficients over the features, in the shape of ``weight``."""
        spec = self.spec
        packed = self.scatter_values(self.values * self.gain).reshape(spec.rows, spec.features, spec.taps)
        return hadamard(packed.transpose(1, 2)).transpose(1, 2).reshape(weight.shape)


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of the last axis ``[…, n]``, in blocks of the power of two in n.

    >>> hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    n = x.shape[-1]
    block = n & -n
    step = 1
    while step < block:
        pairs = x.unflatten(-1, (-1, 2, step))
        a, b = pairs.unbind(-2)
        x = torch.stack([a + b, a - b], -2).flatten(-3)
        step *= 2
    return x * block**-0.5
