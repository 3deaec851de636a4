"""The way back from wavelet coefficients: orthonormal, periodic at the ends, along the first axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scaling filters (Daubechies 1992, Ten Lectures on Wavelets, chapters 6 and 8); the wavelet's filter follows from it.
_R2, _R3 = 2**0.5, 3**0.5
WAVELETS: dict[str, tuple[float, ...]] = {
    "haar": (1 / _R2, 1 / _R2),
    "db2": ((1 - _R3) / (4 * _R2), (3 - _R3) / (4 * _R2), (3 + _R3) / (4 * _R2), (1 + _R3) / (4 * _R2)),
    "db4": (
        -0.010597401785069032, 0.0328830116668852, 0.030841381835560764, -0.18703481171909309,
        -0.027983769416859854, 0.6308807679298589, 0.7148465705529157, 0.2303778133088965,
    ),
    "sym4": (
        -0.07576571478927333, -0.02963552764599851, 0.49761866763201545, 0.8037387518059161,
        0.29785779560527736, -0.09921954357684722, -0.012603967262037833, 0.0322231006040427,
    ),
}


def synthesize_averages(coefficients: Tensor, wavelet: str) -> Tensor:
    """``[n, …]`` coefficients of the averages at half the resolution → ``[2n, …]`` values.

    >>> synthesize_averages(torch.tensor([2.0, 4.0]), "haar") * 2**0.5
    tensor([2.0000, 2.0000, 4.0000, 4.0000])
    """
    return _spread(coefficients, WAVELETS[wavelet])


def synthesize_details(coefficients: Tensor, wavelet: str) -> Tensor:
    """``[n, …]`` coefficients of the details at half the resolution → ``[2n, …]`` values."""
    scaling = WAVELETS[wavelet]
    return _spread(coefficients, tuple(-tap if j % 2 == 0 else tap for j, tap in enumerate(reversed(scaling))))


@dataclass(frozen=True, slots=True)
class HaarFactor:
    """A factor kept as four sub-bands, each with columns of its own, transformed back by one level of Haar."""

    bands: tuple[Tensor, Tensor]   # the first of the four [n · taps, rank], the others [3, n · taps, rank']
    details: tuple[bool, bool, bool, bool]   # which of them are of details, not of averages
    width: int      # of the factor, at most 2 · n · taps: padding is cut off
    taps: int = 1   # neighbouring entries that belong to one feature, which the transform leaves apart

    def matrix(self) -> Tensor:
        """The factor written out, ``[width, rank + 3 · rank']``."""
        parts = zip((self.bands[0], *self.bands[1]), self.details, strict=True)
        values = [(synthesize_details if is_detail else synthesize_averages)(band.unflatten(0, (-1, self.taps)), "haar")
                  for band, is_detail in parts]
        return torch.cat(values, -1).flatten(0, 1)[: self.width]


def padded_width(n: int, levels: int) -> int:
    """The next width that can be halved ``levels`` times.

    >>> padded_width(320, 3), padded_width(11, 2)
    (320, 12)
    """
    step = 2**levels
    return -(-n // step) * step


def _spread(coefficients: Tensor, taps: tuple[float, ...]) -> Tensor:
    """value[2k + length/2 − j] += taps[j] · coefficient[k], the transpose of filtering and keeping every other.

    Even and odd values by themselves: no zeros are multiplied, and Haar has nothing to shift.
    """
    phases: list[Tensor] = []
    for phase in (0, 1):
        shifts = [(tap, (len(taps) // 2 - j - phase) // 2) for j, tap in enumerate(taps)
                  if (len(taps) // 2 - j - phase) % 2 == 0]
        terms = [tap * (coefficients.roll(shift, 0) if shift else coefficients) for tap, shift in shifts]
        phases.append(torch.stack(terms).sum(0) if len(terms) > 1 else terms[0])
    return torch.stack(phases, 1).flatten(0, 1)
