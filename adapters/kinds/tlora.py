"""TLoRA: a full-rank tensor-ring transform of the inputs, and a small residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.factorize import modes
from atelier.adapters.kinds.lora import RankSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class TloraSettings(RankSettings):
    """Settings of a transformed adapter."""

    rank: int = setting(6, "Rank of the residual (ring size for a tensor ring).", low=1, high=1024)
    ring: int = setting(2, "Ring size of the transform.", low=1, high=64)
    residual: str = setting("ring", "The part that is added: a tensor ring (smallest) or a LoRA.",
                            choices=("ring", "lora"))


class TensorRing(nn.Module):
    """Δ[o, i] = tr(Π_d outs_d[o_d] · Π_d ins_d[i_d]), with cores ``[mode, rank, rank]``; 0 because ``outs₁`` is."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        outs, ins = ([torch.randn(i, rank, rank) * rank**-0.5 for i in modes(n)] for n in (rows, columns))
        self.outs, self.ins = nn.ParameterList(outs), nn.ParameterList(ins)
        with torch.no_grad():
            self.outs[0].zero_()
            self.ins[0] *= (3 * columns) ** -0.5   # as large as LoRA's `down`

    def forward(self) -> Tensor:
        """Δ ``[rows, columns]``."""
        out, back = (torch.einsum("iab,jbc,kcd->ijkad", *cores).flatten(0, 2) for cores in (self.outs, self.ins))
        return torch.einsum("oab,iba->oi", out, back)


class LowRankResidual(nn.Module):
    """Δ = up @ down, with ``up`` zero at the start."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self) -> Tensor:
        """Δ ``[rows, columns]``."""
        return self.up @ self.down


class Tlora(Adapter):
    """W + ΔW = W · T + scale · Δ, T a tensor-ring matrix   (Tao et al. 2025, arXiv 2501.08727).

    T[i, j] = tr(Π_d C_d[i_d, j_d]) acts on the input features, at every tap of a kernel alike; its cores C_d are
    ``[mode, mode, ring, ring]`` over the three modes of the features, row-major. Δ is a tensor ring or a LoRA.
    Parameters: ring**2 · sum(i**2 for i in modes(features)) + (rank**2 · sum(modes(rows) + modes(columns)) if residual
    == "ring" else rank · (rows + columns)). Start: Δ = 0, and T = 1 from C_d = 1 · mixer_d + change_d with random
    ``mixers [3, ring, ring]``, tr(Π mixer_d) = 1, and ``change`` zero. What is applied is T − T₀: 0 to the last bit.
    Difference: in the paper mixer_d = 1/ring everywhere. All slices of a core then have equal gradients for ever, and
    a ring of 2 can do no more than one of 1, at four times the size; orthogonal ones, the third undoing the first two,
    let the slices part and pass a change of a core on at its own length. Files made with other mixers hold those.
    """

    kind = "tlora"
    title = "TLoRA"
    settings = TloraSettings
    mixers: Tensor

    def __init__(self, spec: Spec, settings: TloraSettings) -> None:
        super().__init__(spec, settings)
        self.scale, ring = settings.scale, settings.ring
        self.change = nn.ParameterList([torch.zeros(i, i, ring, ring) for i in modes(spec.features)])
        one, two = (torch.linalg.qr(torch.randn(ring, ring)).Q for _ in range(2))
        self.register_buffer("mixers", torch.stack([one, two, (one @ two).T / ring]))   # tr(one · two · third) = 1
        residual = TensorRing if settings.residual == "ring" else LowRankResidual
        self.residual = residual(spec.rows, spec.columns, settings.rank)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: TloraSettings) -> int:
        """Cores of the transform and of the residual: the formula of the class."""
        transform = settings.ring**2 * sum(i**2 for i in modes(spec.features))
        if settings.residual == "lora":
            return transform + settings.rank * (spec.rows + spec.columns)
        return transform + settings.rank**2 * sum(modes(spec.rows) + modes(spec.columns))

    def transform(self, change: Sequence[Tensor]) -> Tensor:
        """T ``[features, features]`` when the cores have changed so."""
        cores = [torch.einsum("ip,ab->ipab", torch.eye(len(c), dtype=c.dtype, device=c.device), mixer) + c
                 for c, mixer in zip(change, self.mixers, strict=True)]
        return torch.einsum("ipab,jqbc,krca->ijkpqr", *cores).reshape(self.spec.features, self.spec.features)

    def delta(self, weight: Tensor) -> Tensor:
        """W · (T − T₀) + scale · Δ in the shape of ``weight``."""
        turn = self.transform(list(self.change)) - self.transform([torch.zeros_like(c) for c in self.change])
        taps = weight.detach().reshape(self.spec.rows, self.spec.features, self.spec.taps).to(turn.dtype)
        turned = torch.einsum("oit,ij->ojt", taps, turn)
        return (turned.flatten(1) + self.scale * self.residual()).reshape(weight.shape)
