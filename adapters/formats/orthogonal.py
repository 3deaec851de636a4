"""Imported adapters that turn a weight instead of adding to it: OFT, BOFT and HRA, as LyCORIS, PEFT and OneTrainer do.

ΔW = turned W − W holds W, so it is of full rank and taken from the original W like every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from atelier.adapters.formats.layer_shapes import triangle_side
from atelier.adapters.formats.lycoris import Imported, as_matrix
from atelier.kernels.torch_internals import buffers_of

_TINY = 1e-8   # LyCORIS adds it to the norm before it divides


class ImportedOft(Imported):
    """W + ΔW = rescale · blockdiag(R)ᵀ W, R = (1 + Q)(1 − Q)⁻¹, Q = blocks − blocksᵀ   (LyCORIS, diag-oft).

    OFT: Qiu et al. 2023, arXiv 2306.07280. ``oft_blocks [n, b, b]`` turn the outputs, ``alpha`` · rows is the largest
    ‖Q‖ of all blocks together (0: any), ``rescale [rows]`` stretches them.
    """

    def skew(self) -> Tensor:
        """Q of every block, ``[…, b, b]``."""
        blocks = self.need(self.blocks)
        skew = blocks - blocks.transpose(-1, -2)
        largest = self.number("alpha") * self.rows_of(blocks)
        if largest > 0:
            norm = skew.norm() + _TINY
            skew = skew * (largest / norm) if norm > largest else skew
        return skew

    def turns(self) -> Tensor:
        """R of every block, ``[…, b, b]``."""
        skew = self.skew()
        one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        return torch.linalg.solve(one - skew, one + skew, left=False)

    blocks = "oft_blocks"

    @staticmethod
    def rows_of(blocks: Tensor) -> int:
        """Outputs that the blocks turn."""
        return blocks.shape[-3] * blocks.shape[-1]

    def _turned(self, matrix: Tensor) -> Tensor:
        turns = self.turns()
        blocks = matrix.unflatten(0, turns.shape[:2])
        return torch.einsum("knm,knc->kmc", turns, blocks).flatten(0, 1)

    def _update(self, weight: Tensor) -> Tensor:
        matrix = as_matrix(weight, self.need(self.blocks))
        turned = self._turned(matrix)
        if (rescale := self.part("rescale")) is not None:
            turned = turned * rescale.reshape(-1, 1)
        return (turned - matrix).reshape(weight.shape)


class ImportedBoft(ImportedOft):
    """As OFT with one factor after the other, ``boft_blocks [m, n, b, b]``, whose blocks lie ever farther apart.

    BOFT: Liu et al. 2023, arXiv 2311.06243 (LyCORIS, boft). Factor i mixes outputs at a distance of 2ⁱ · b/2.
    """

    blocks = "boft_blocks"

    def _turned(self, matrix: Tensor) -> Tensor:
        for i, turns in enumerate(self.turns()):
            half = 2**i * turns.shape[-1] // 2
            shuffled = matrix.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)
            mixed = torch.einsum("bij,bjc->bic", turns, shuffled.unflatten(0, turns.shape[:2])).flatten(0, 1)
            matrix = mixed.unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2)
        return matrix


class ImportedInputOft(Imported):
    """W + ΔW = W blockdiag(R)ᵀ, where R turns the inputs   (PEFT's and OneTrainer's OFT).

    ``oft_R [n, b(b−1)/2]`` are the upper triangles of the skew Q; R = (1 − Q)(1 + Q)⁻¹, or the first ``terms`` of
    (1 + Q)(1 − Q)⁻¹ as a series. n = 1: one block for all inputs. ``largest_turn``: PEFT's COFT, √n times the largest
    ‖Q‖ of a block. OneTrainer divides Q by 2 √(b − 1) with ``scaled_oft``, and its convolutions use Rᵀ: ``transposed``.
    """

    def turn(self) -> Tensor:
        """R of every block, ``[n, b, b]``."""
        triangle = self.need("oft_R")
        block = triangle_side(triangle.shape[1])
        skew = triangle.new_zeros(len(triangle), block, block)
        row, column = torch.triu_indices(block, block, 1)
        skew[:, row, column] = triangle
        skew = skew - skew.transpose(1, 2)
        if "scaled_oft" in buffers_of(self) and self.number("scaled_oft"):
            skew = skew / (2 * (block - 1) ** 0.5)
        if (largest := self.number("largest_turn")) > 0:
            norm = skew.norm(dim=(1, 2), keepdim=True)
            limit = largest / len(triangle) ** 0.5
            skew = torch.where(norm <= limit, skew, skew * (limit / norm))
        turn = _neumann(skew, int(self.number("terms"))) if "terms" in buffers_of(self) else _cayley(-skew)
        return turn.transpose(1, 2) if self.number("transposed") else turn

    def _update(self, weight: Tensor) -> Tensor:
        matrix, turn = as_matrix(weight, self.need("oft_R")), self.turn()
        blocks = matrix.unflatten(1, (-1, turn.shape[1]))
        turn = turn.expand(blocks.shape[1], -1, -1)
        turned = torch.einsum("okc,krc->okr", blocks, turn).flatten(1)
        return (turned - matrix).reshape(weight.shape)

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether the blocks cover the inputs of ``shape``; a single block may repeat."""
        triangle = self.need("oft_R")
        columns, block = prod(shape[1:]), triangle_side(triangle.shape[1])
        return columns == len(triangle) * block or (len(triangle) == 1 and columns % block == 0)


class ImportedInputBoft(Imported):
    """W + ΔW = diag(s) · W Bᵀ with B = B_m … B_1, each Pᵢ blockdiag(R) Pᵢᵀ   (PEFT's BOFT).

    ``boft_R [m, n, b, b]``, R = (1 − Q)(1 + Q)⁻¹ with Q = (blocks − blocksᵀ)/2; ``boft_s [rows]``.
    """

    def _update(self, weight: Tensor) -> Tensor:
        blocks = self.need("boft_R")
        matrix = as_matrix(weight, blocks)
        turned = matrix
        for i, turns in enumerate(_cayley((blocks.transpose(2, 3) - blocks) / 2)):
            order = butterfly(matrix.shape[1], len(turns) // 2**i, turns.shape[1] // 2, len(blocks) - 1)
            inside = turned[:, order.argsort()].unflatten(1, (len(turns), -1))
            turned = torch.einsum("okc,krc->okr", inside, turns).flatten(1)[:, order]
        return (turned * self.need("boft_s").reshape(-1, 1) - matrix).reshape(weight.shape)


class ImportedHra(Imported):
    """W + ΔW = W Πᵢ (1 − 2 uᵢuᵢᵀ), uᵢ the columns of ``hra_u [columns, r]`` at length 1   (HRA, arXiv 2405.17484).

    With ``gram_schmidt`` they are made orthogonal first.
    """

    def _update(self, weight: Tensor) -> Tensor:
        mirrors = self.need("hra_u")
        matrix = as_matrix(weight, mirrors)
        mirrors = torch.linalg.qr(mirrors).Q if self.number("gram_schmidt") else mirrors / mirrors.norm(dim=0)
        turned = matrix
        for u in mirrors.T:
            turned = turned - 2 * (turned @ u)[:, None] * u
        return (turned - matrix).reshape(weight.shape)


def butterfly(size: int, blocks: int, half: int, factors: int) -> Tensor:
    """How one factor of PEFT's BOFT orders its inputs ``[size]``: of each block, first the even runs, then the odd."""
    if not factors:
        return torch.arange(size)
    inside = size // blocks
    runs = torch.arange(inside).unflatten(0, (-1, half))
    order = torch.cat([runs[0::2], runs[1::2]]).flatten()
    return (torch.arange(blocks)[:, None] * inside + order).flatten()


def _cayley(skew: Tensor) -> Tensor:
    """(1 + Q)(1 − Q)⁻¹ for each Q of ``[…, b, b]``."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(one - skew, one + skew, left=False)


def _neumann(skew: Tensor, terms: int) -> Tensor:
    """The first terms of 1 + 2Q + 2Q² + …, the last of them once; 3 count as 4, as in PEFT."""
    terms = 4 if terms == 3 else terms
    total = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    power = total
    for number in range(1, terms):
        power = power @ skew
        total = total + (1 if number == terms - 1 and terms > 2 else 2) * power
    return total
