"""Where the levels of a quantizer lie: step sizes and zero points chosen from the numbers they are to hold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atelier.kernels.fake_quant import fake_quant, top_code

# Candidates of a search: ranges smaller by so many per cent. Inputs have one row, and weights thousands.
_INPUT_CUTS, _WEIGHT_CUTS = range(1, 80), range(2, 80, 2)
# Large errors count more than in a mean square (EfficientDM's code); powers are slow, and weights have no outliers.
_INPUT_POWER, _WEIGHT_POWER = 2.4, 2.0
MIDDLE = 128      # zero point of 8-bit weights: code − zero then fits a signed byte, as integer kernels want it
LARGEST = 127


class QuantizerParameters(NamedTuple):
    """Quantizers, one for each row they were chosen from."""

    steps: Tensor   # [rows], step sizes, above 0
    zeros: Tensor   # [rows], zero points, whole numbers from 0 to 2^bits − 1

    def broadcast_over(self, dimensions: int) -> QuantizerParameters:
        """The same with ones added to the shape, to go along with a weight of so many dimensions."""
        return QuantizerParameters(*(part.reshape(-1, *[1] * (dimensions - 1)) for part in self))


def fit_weight_quantizer(weight: Tensor, bits: int, *, search: bool) -> QuantizerParameters:
    """Levels for each output channel of a weight ``[out, …]``; 8 bits are symmetric about 0 and need no search."""
    rows = weight.detach().flatten(1).float()
    if bits == 8:
        steps = _positive(rows.abs().amax(1) / LARGEST)
        return QuantizerParameters(steps, torch.full_like(steps, MIDDLE))
    return _row_levels(rows, bits, _WEIGHT_CUTS if search else range(0), _WEIGHT_POWER)


def fit_input_quantizer(values: Tensor, bits: int, *, search: bool) -> QuantizerParameters:
    """Levels for a layer's inputs, of which these are some, as a single row."""
    return _row_levels(values.flatten()[None], bits, _INPUT_CUTS if search else range(0), _INPUT_POWER)


def _row_levels(rows: Tensor, bits: int, cuts: range, power: float) -> QuantizerParameters:
    """Levels for each row of ``[rows, n]``: its whole range, or the one among the cut ones that rounds best.

    A range always holds 0, which is then a level of its own: padding and what a ReLU left stay exact.
    """
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    best = _between(low, high, bits)
    if not cuts:
        return best
    least = _errors(rows, best, bits, power)
    for cut in cuts:
        levels = _between(low * (1 - cut / 100), high * (1 - cut / 100), bits)
        errors = _errors(rows, levels, bits, power)
        better = errors < least
        least = torch.where(better, errors, least)
        best = QuantizerParameters(*(torch.where(better, new, old) for new, old in zip(levels, best, strict=True)))
    return best


def _between(low: Tensor, high: Tensor, bits: int) -> QuantizerParameters:
    steps = _positive((high - low) / top_code(bits))
    return QuantizerParameters(steps, (-low / steps).round().clamp(0, top_code(bits)))


def _errors(rows: Tensor, levels: QuantizerParameters, bits: int, power: float) -> Tensor:
    steps, zeros = levels.broadcast_over(2)
    off = rows - fake_quant(rows, steps, zeros, bits)
    return (off.square() if power == 2 else off.abs().pow(power)).mean(1)


def _positive(steps: Tensor) -> Tensor:
    """A row of zeros has no range; any step size holds it."""
    return torch.where(steps > 0, steps, 1)
