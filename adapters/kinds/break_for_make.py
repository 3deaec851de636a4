"""Break-for-Make: content and style own different halves of one adapter.

Putting halves together: ``adapters/fusion/break_for_make_halves.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.lora import RankSettings

_GRID = 2.0**16   # frozen halves are multiples of 2⁻¹⁶, so that every machine's QR gives the same bits


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakForMakeSettings(RankSettings):
    """Settings of one half, or of both. Two halves fit together when all but the role are the same."""

    rank: int = setting(16, "Rank. Content and style share it, so use twice the rank of a LoRA.", low=2, high=1024)
    role: str = setting("content", "What is trained: a subject (content) or a way of drawing (style). Two "
                                   "adapters with the same rank, base model and layers can be combined "
                                   "later.", choices=("content", "style", "both"))
    start: str = setting("clean", "The frozen halves: 'clean' keeps them exactly orthogonal, 'faithful' uses the "
                                  "authors' orthogonal basis.", choices=("clean", "faithful"))
    content_side: str = setting("down", "The half that content trains: 'down' in the authors' code, 'up' in their "
                                        "figure.", choices=("down", "up"))
    basis_seed: int = setting(0, "Seed of the frozen halves. Only adapters with the same seed can be combined.", low=0)


class BreakForMake(Adapter):
    """ΔW = scale · [[0, A @ D], [B @ C, B @ (E + D)]]   (Break-for-Make, Xu et al. 2024, arXiv 2403.19456).

    The rows of LoRA's ``up`` and the columns of its ``down`` are cut in half: ``up = [A; B]``, ``down = [C, D]``. A
    and C are frozen, one concept owns B and the other D. A 3×3 convolution is the matrix [out, in·9], cut between
    input channels. Shapes: A ``[rows // 2, rank]``, C ``[rank, (features // 2)·taps]``, B and D the rest.
    Parameters: rank · (rows − rows // 2 + (features − features // 2) · taps). Start: B = D = 0, so ΔW = 0 exactly.

    A and C follow from (seed, layer, shape) alone: any content learned anywhere meets any style.

    - ``clean``: orthonormal directions, the first half of the rank for A, the second for C, so A @ C = 0 exactly: no
      constant is left. D sees half of the rank through A, so take twice a LoRA's. E = 0.
    - ``faithful``: A and C are different rows of one matrix with orthonormal columns, E is noise of deviation 1 / rank.
      The authors start from that perturbed model; here, as with every kind, what is trained is added to the start:
      ``up @ down − up₀ @ down₀``, an exact pair of twice the rank. In the authors' code layers that are not square, and
      ``to_out``, have A = 0; here all layers have a basis.

    Left out: the cross-leak and the drift of frozen halves under weight decay in the authors' code, by construction:
    A, C and E are buffers.
    """

    kind = "split"
    title = "Content and style (Break-for-Make)"
    settings = BreakForMakeSettings
    frozen_up: Tensor
    frozen_down: Tensor
    first_down: Tensor

    def __init__(self, spec: Spec, settings: BreakForMakeSettings) -> None:
        super().__init__(spec, settings)
        self.scale, self.content_is_down = settings.scale, settings.content_side == "down"
        rows, columns, rank = spec.rows // 2, spec.features // 2 * spec.taps, settings.rank
        self.up = nn.Parameter(torch.zeros(spec.rows - rows, rank))
        self.down = nn.Parameter(torch.zeros(rank, spec.columns - columns))
        self.disabled_role = ""   # the role whose half counts as zero for now
        self.faithful = settings.start == "faithful"
        if self.faithful:
            basis = _orthonormal(_noise(settings.basis_seed, spec, "both", max(spec.rows, spec.columns), rank))
            up, down = basis[columns : columns + rows], basis[:columns].T
            noise = _noise(settings.basis_seed, spec, "first", rank, spec.columns - columns)
            self.register_buffer("first_down", _round_to_grid(noise * 3**0.5 / rank))
        else:
            half = rank // 2
            up, down = torch.zeros(rows, rank), torch.zeros(rank, columns)
            up[:, :half] = _orthonormal(_noise(settings.basis_seed, spec, "up", rows, half))
            down[half:] = _orthonormal(_noise(settings.basis_seed, spec, "down", columns, rank - half)).T
        self.register_buffer("frozen_up", _round_to_grid(up))
        self.register_buffer("frozen_down", _round_to_grid(down))

    @classmethod
    def parameter_count(cls, spec: Spec, settings: BreakForMakeSettings) -> int:
        """rank · (rows of B + columns of D)."""
        rows, features = spec.rows - spec.rows // 2, spec.features - spec.features // 2
        return settings.rank * (rows + features * spec.taps)

    def trainable_half(self, role: str) -> nn.Parameter:
        """What ``content`` or ``style`` owns."""
        return self.down if (role == "content") == self.content_is_down else self.up

    def trainable_halves(self) -> tuple[Tensor, Tensor]:
        """B and D, as far as they are heard."""
        muted = self.trainable_half(self.disabled_role) if self.disabled_role else None
        up, down = (torch.zeros_like(half) if half is muted else half for half in (self.up, self.down))
        return up, down

    def halves(self) -> tuple[Tensor, Tensor]:
        """``up = [A; B]`` and ``down = [C, E + D]``, whole and without the scale."""
        up, down = self.trainable_halves()
        down = self.first_down + down if self.faithful else down
        return torch.cat([self.frozen_up, up]), torch.cat([self.frozen_down, down], 1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The exact pair of the class's formula: of rank ``rank``, or twice that for ``faithful``."""
        up, down = self.halves()
        if self.faithful:   # A @ C and A @ E belong to the start, which is taken away
            own_up, own_down = self.trainable_halves()
            up = torch.block_diag(self.frozen_up, own_up)
            down = torch.cat([torch.cat([torch.zeros_like(self.frozen_down), own_down], 1), down])
        return up * self.scale, down


def _noise(seed: int, spec: Spec, what: str, rows: int, columns: int) -> Tensor:
    """``[rows, columns]`` even in −1 … 1, from a hash: another torch, or one used before, gives the same numbers."""
    if torch.get_default_device().type == "meta":   # only shapes are asked for
        return torch.empty(rows, columns, dtype=torch.float64)
    text = f"{seed} {spec.name} {list(spec.shape)} {what}"
    drawn = hashlib.shake_256(text.encode()).digest(4 * rows * columns)
    if not drawn:   # of a layer with one row or one input, a half is empty
        return torch.zeros(rows, columns, dtype=torch.float64)
    return torch.frombuffer(bytearray(drawn), dtype=torch.int32).double().reshape(rows, columns) / 2**31


def _orthonormal(values: Tensor) -> Tensor:
    """The same shape with orthonormal columns, or rows where there are fewer of those; unique by its signs."""
    wide = values.shape[0] < values.shape[1]
    q, r = torch.linalg.qr(values.T if wide else values)
    q = q * r.diagonal().sign()
    return q.T if wide else q


def _round_to_grid(values: Tensor) -> Tensor:
    return ((values * _GRID).round() / _GRID).float().contiguous()
