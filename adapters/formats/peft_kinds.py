"""Imported adapters of PEFT's own kinds: what each adds to a weight, in the words of its paper and PEFT's code.

Tensors keep PEFT's names. What PEFT keeps in ``adapter_config.json`` is a number beside them: a ``scale``, a ``seed``
for positions that PEFT draws anew whenever it loads a file, a switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.adapters.formats.lycoris import Imported, as_matrix
from atelier.adapters.formats.module_names import has_no_bias
from atelier.kernels.wavelet import WAVELETS

_WAVELETS = ("haar", "db2", "db4", "sym4")   # in the order of ``peft_config.PEFT_WAVELETS``


class ImportedScaling(Imported):
    """W + ΔW = W scaled by ``ia3_l``, row by row or (``on_input``) column by column   ((IA)³: arXiv 2205.05638).

    A row's bias is scaled with it, as PEFT does.
    """

    def _update(self, weight: Tensor) -> Tensor:
        gain = self.need("ia3_l").flatten() - 1
        shape = [1, -1] if self.number("on_input") else [-1, 1]
        return weight.to(gain) * gain.reshape(*shape, *(1 for _ in weight.shape[2:]))

    @property
    def adds_bias(self) -> bool:
        """Whether a row's bias is scaled with it."""
        return self.reads_bias

    @property
    def reads_bias(self) -> bool:
        """True where rows are scaled and the layer can have a bias: bias · (``ia3_l`` − 1) is added."""
        return not self.number("on_input") and not has_no_bias(self.spec.name)

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """bias · (``ia3_l`` − 1), ``[rows]``; None where the layer has no bias or inputs are scaled."""
        if bias is None or self.number("on_input"):
            return None
        gain = self.need("ia3_l").flatten() - 1
        return bias.to(gain) * gain

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether the scaled side of ``shape`` has as many features as ``ia3_l`` has factors."""
        return len(shape) > 1 and shape[1 if self.number("on_input") else 0] == self.need("ia3_l").numel()


class ImportedWhole(Imported):
    """W + ΔW = ``set_weight``, the layer as training left it; the same for its bias (PEFT's ``modules_to_save``)."""

    def _update(self, weight: Tensor) -> Tensor:
        whole = self.part("set_weight")
        return torch.zeros_like(weight) if whole is None else whole.reshape(weight.shape) - weight.to(whole)


class ImportedShira(Imported):
    """ΔW = ``shira_weight [n]`` at ``shira_indices [2, n]``   (SHiRA: arXiv 2406.13175)."""

    def _update(self, weight: Tensor) -> Tensor:
        values, (row, column) = self.need("shira_weight"), self.need("shira_indices").long()
        return torch.zeros(weight.shape, dtype=values.dtype, device=values.device).index_put_(
            (row, column), values, accumulate=True)   # fmt: skip

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether ``shape`` is a matrix that holds every stored position."""
        places = self.need("shira_indices")
        return len(shape) == 2 and bool((places >= 0).all()) and all(
            int(side.max()) < size for side, size in zip(places, shape, strict=True))   # fmt: skip


class ImportedSpectrum(Imported):
    """A few coefficients at places that PEFT draws from a ``seed`` and the weight's shape."""

    spectrum = ""

    def dense(self, shape: Sequence[int]) -> Tensor:
        """The coefficients at their places, ``shape``; all others are zero."""
        values = self.need(self.spectrum)
        draw = torch.Generator().manual_seed(int(self.number("seed")))
        places = torch.randperm(prod(shape), generator=draw)[: len(values)].to(values.device)
        empty = torch.zeros(prod(shape), dtype=values.dtype, device=values.device)
        return empty.scatter(0, places, values).reshape(*shape)

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether ``shape`` is a matrix with at least as many entries as there are coefficients."""
        return len(shape) == 2 and self.need(self.spectrum).numel() <= prod(shape)


class ImportedFourier(ImportedSpectrum):
    """ΔW = scale · Re(F⁻¹ C F⁻¹), C zero but for ``fourierft_spectrum``   (FourierFT: arXiv 2405.03003)."""

    spectrum = "fourierft_spectrum"

    def _update(self, weight: Tensor) -> Tensor:
        return torch.fft.ifft2(self.dense(weight.shape)).real * self.number("scale", 1.0)


class ImportedWavelet(ImportedSpectrum):
    """ΔW = scale · the inverse wavelet transform of C, zero but for ``waveft_spectrum``   (WaveFT: arXiv 2505.12532).

    C is centred in a padded matrix of four quarters, as PEFT's; with ``direct`` it is ΔW itself.
    """

    spectrum = "waveft_spectrum"

    def _update(self, weight: Tensor) -> Tensor:
        coefficients, scale = self.dense(weight.shape), self.number("scale", 1.0)
        if self.number("direct"):
            return coefficients * scale
        taps = WAVELETS[_WAVELETS[int(self.number("wavelet"))]]
        sides = [size + len(taps) - 2 + size % 2 for size in weight.shape]
        before = [(side - size) // 2 for side, size in zip(sides, weight.shape, strict=True)]
        after = [side - size - first for side, size, first in zip(sides, weight.shape, before, strict=True)]
        padded = F.pad(coefficients, (before[1], after[1], before[0], after[0]))
        # PEFT keeps the quarter of fine rows and coarse columns where others keep that of coarse rows and fine columns.
        top, bottom = padded.chunk(2)
        (smooth, fine_rows), (fine_columns, fine) = top.chunk(2, 1), bottom.chunk(2, 1)
        left = _synthesized(smooth, fine_rows, taps)
        right = _synthesized(fine_columns, fine, taps)
        found = _synthesized(left.T, right.T, taps).T
        first = [(there - size) // 2 for there, size in zip(found.shape, weight.shape, strict=True)]
        return scale * found[first[0] : first[0] + weight.shape[0], first[1] : first[1] + weight.shape[1]]


class ImportedMiss(Imported):
    """ΔW[:, c] = ``miss_block [r, rows]``[c mod r]   (MiSS: arXiv 2409.15371).

    With fewer columns than rows of W they repeat (PEFT's ``mini``); ``[rows/r, r, r]`` is its ``bat``:
    ΔW = W_ij B_i + B_i for every block of W.
    """

    def _update(self, weight: Tensor) -> Tensor:
        block = self.need("miss_block")
        matrix = as_matrix(weight, block)
        if block.dim() == 3:
            side = block.shape[1]
            blocks = matrix.unflatten(0, (-1, side)).unflatten(2, (-1, side))   # [rows/r, r, columns/r, r]
            return (torch.einsum("oarb,obc->oarc", blocks, block) + block[:, :, None]).reshape(weight.shape)
        column = torch.arange(matrix.shape[1], device=block.device) % len(block)
        return block.repeat(1, matrix.shape[0] // block.shape[1])[column].T.reshape(weight.shape)

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether ``shape`` divides into blocks of the stored size."""
        size = self.need("miss_block").shape
        if len(size) == 3:
            return len(shape) == 2 and shape[0] == size[0] * size[1] and shape[1] % size[1] == 0
        return len(shape) == 2 and shape[0] % size[1] == 0 and size[0] <= shape[1]


class ImportedRandlora(Imported):
    """ΔW = scale · B diag(Λ) A diag(Γ) summed over random bases, or its transpose   (RandLoRA: arXiv 2502.00987).

    Shapes: ``randlora_lambda [r, n]``, ``randlora_gamma [n, short]``, ``randlora_A [r, 1, ≥ short]``,
    ``randlora_B [≥ long, ≥ n, r]``; A and B are cut to the layer's two sides.
    """

    def _update(self, weight: Tensor) -> Tensor:
        shares, gains = self.need("randlora_lambda"), self.need("randlora_gamma")
        count, short = gains.shape
        long = max(weight.shape)
        narrow = (shares[:, :, None] * self.need("randlora_A")[:, :, :short] * gains).flatten(0, 1)
        wide = self.need("randlora_B")[:long, :count].flatten(1)
        product = wide @ narrow
        return self.number("scale", 1.0) * (product if weight.shape[1] == short else product.T)

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether the shorter side fits ``randlora_gamma`` and the longer one ``randlora_B``."""
        short, long = self.need("randlora_gamma").shape[1], self.need("randlora_B").shape[0]
        return len(shape) == 2 and min(shape) == short and max(shape) <= long


class ImportedVera(Imported):
    """ΔW = diag(b) B diag(d) A, B and A the same for all layers, cut to the weight   (VeRA: arXiv 2310.11454)."""

    def _update(self, weight: Tensor) -> Tensor:
        up, down = self.need("vera_B")[: weight.shape[0]], self.need("vera_A")[:, : weight.shape[1]]
        return (self.need("vera_lambda_b")[:, None] * up) @ (self.need("vera_lambda_d")[:, None] * down)

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether ``vera_lambda_b`` has one factor per row and ``vera_A`` enough columns."""
        rows, columns = self.need("vera_lambda_b").numel(), self.need("vera_A").shape[1]
        return len(shape) == 2 and shape[0] == rows and shape[1] <= columns


class ImportedHira(Imported):
    """ΔW = W ∘ (``hira_B`` @ ``hira_A``)   (HiRA: Huang et al. 2025)."""

    def _update(self, weight: Tensor) -> Tensor:
        product = self.need("hira_B").flatten(1) @ self.need("hira_A").flatten(1)
        return weight.to(product) * product.reshape(weight.shape)


class ImportedC3a(Imported):
    """ΔW = 1/columns · blocks of circulant matrices, from ``c3a_kernel [rows/b, columns/b, b]``   (arXiv 2407.19342).

    Entry (i, j) of a block is its kernel at (j − i) mod b.
    """

    def _update(self, weight: Tensor) -> Tensor:
        kernel = self.need("c3a_kernel")
        place = torch.arange(kernel.shape[2], device=kernel.device)
        blocks = kernel[:, :, (place[None] - place[:, None]) % kernel.shape[2]]   # [m, n, b, b]
        return blocks.transpose(1, 2).reshape(weight.shape) / weight.shape[1]


class ImportedGralora(Imported):
    """ΔW of k × k blocks, each a low-rank product, and a plain one over all   (GraLoRA: arXiv 2505.20355).

    ``gralora_A [k, columns/k, r]``, ``gralora_B [k, r, rows/k]``: input block n sends r/k of its directions to each
    output block. ``gralora_A_general`` and ``gralora_B_general`` are LoRA's factors.
    """

    def _update(self, weight: Tensor) -> Tensor:
        reads, writes = self.need("gralora_A"), self.need("gralora_B")
        count = len(reads)
        reads, writes = reads.unflatten(2, (count, -1)), writes.unflatten(1, (count, -1))
        update = torch.einsum("nikr,knro->koni", reads, writes).reshape(weight.shape)
        general = self.part("gralora_B_general")
        if general is not None:
            update = update + general @ self.need("gralora_A_general")
        return update * self.number("scale", 1.0)


def _synthesized(smooth: Tensor, fine: Tensor, taps: Sequence[float]) -> Tensor:
    """One level of the inverse wavelet transform along the first axis, not periodic; the ends are cut as PEFT does."""
    low = torch.tensor(taps[::-1], dtype=smooth.dtype, device=smooth.device)
    high = torch.tensor([tap if place % 2 == 0 else -tap for place, tap in enumerate(taps)], dtype=smooth.dtype,
                        device=smooth.device)   # fmt: skip
    found = sum(F.conv_transpose1d(part.T[:, None], kernel[None, None], stride=2)
                for part, kernel in ((smooth, low), (fine, high)))   # fmt: skip
    assert isinstance(found, Tensor)
    cut = (2 * len(taps) - 3) // 2
    return found[:, 0, cut : found.shape[2] - cut].T
