"""OFT: a rotation of what each layer puts out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings, setting
from atelier.adapters.kinds.factorize import largest_divisor


@dataclass(frozen=True, kw_only=True, slots=True)
class OftSettings(Settings):
    """How freely outputs are rotated."""

    block: int = setting(32, "Outputs that are rotated together: a larger block learns more and makes a larger file.",
                         low=2, high=64)   # fmt: skip


class Oft(Adapter):
    """W + ΔW = R · W, R = blockdiag((1 + Q)(1 − Q)⁻¹) orthogonal   (OFT, Qiu et al. 2023, arXiv 2306.07280).

    Shapes: ``values [rows / b, b · (b − 1) / 2]``, the upper triangles of the skew matrices Q, b = share(rows, block),
    the largest divisor of the rows that is no larger than ``block``.
    Parameters: rows · (share(rows, block) − 1) / 2. Start: ``values`` zero, so R = 1; ΔW = (R − 1) · W, and R − 1 =
    2 (1 − Q)⁻¹ Q is exactly 0 there. Lengths of the outputs' weights and the angles between those of one block stay
    as they are, so an adapter turns what the base model knows and can't make any of it stronger.
    Difference: Cayley's transform is solved exactly, where PEFT takes five terms of a series, which is not orthogonal
    for large Q; PEFT also rotates inputs. At a strength other than 1 it is W + strength · ΔW, no partial rotation.
    """

    kind = "oft"
    title = "OFT"
    settings = OftSettings

    def __init__(self, spec: Spec, settings: OftSettings) -> None:
        super().__init__(spec, settings)
        self.block = largest_divisor(spec.rows, settings.block)
        self.values = nn.Parameter(torch.zeros(spec.rows // self.block, self.block * (self.block - 1) // 2))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: OftSettings) -> int:
        """rows · (b − 1) / 2, with b = share(rows, block)."""
        return spec.rows * (largest_divisor(spec.rows, settings.block) - 1) // 2

    def skew(self) -> Tensor:
        """Q of every block ``[rows / b, b, b]``."""
        row, column = torch.triu_indices(self.block, self.block, 1, device=self.values.device)
        upper = self.values.new_zeros(len(self.values), self.block, self.block)
        upper = upper.index_put((torch.arange(len(upper), device=row.device)[:, None], row, column), self.values)
        return upper - upper.transpose(1, 2)

    def delta(self, weight: Tensor) -> Tensor:
        """(R − 1) · W in the shape of ``weight``; R is solved for exactly."""
        skew = self.skew()
        turn = 2 * torch.linalg.solve(torch.eye(self.block, dtype=skew.dtype, device=skew.device) - skew, skew)
        matrix = weight.detach().flatten(1).to(skew.dtype).unflatten(0, turn.shape[:2])
        return (turn @ matrix).reshape(weight.shape)
