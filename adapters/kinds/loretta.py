"""LoRETTA: LoRA whose two factors are tensor trains."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.kinds.factorize import modes
from atelier.adapters.kinds.lora import RankSettings
from atelier.kernels.factor_forms import Factor, factor_matrices
from atelier.kernels.tensor_networks import TensorTrainFactor


@dataclass(frozen=True, kw_only=True, slots=True)
class LorettaSettings(RankSettings):
    """Settings of a tensor-train adapter."""

    bond: int = setting(5, "Rank of the tensor trains. It also limits the rank of the update.", low=1,
                        high=256)


class Loretta(Adapter):
    """ΔW = scale · up @ down, both of them tensor trains   (Yang et al. 2024, arXiv 2402.11417, LoRETTA_rep).

    ``down [rank, columns]`` is the train over (modes of columns, rank) and ``up [rows, rank]`` over (rank, modes of
    rows): cores ``[bond, mode, bond]``, the outer bonds 1, three modes to a width.
    Parameters: train(modes(columns) + (rank,), bond) + train((rank,) + modes(rows), bond). Start: the last core of
    ``up`` zero, the others normal, scaled so that ``down`` has the size of LoRA's.
    The rank of ΔW is at most min(rank, bond): raise both.
    Difference: the authors draw all cores at random, so their update is not zero at the start; their second variant,
    a bottleneck layer, cannot be merged and is left out.
    """

    kind = "loretta"
    title = "LoRETTA"
    settings = LorettaSettings

    def __init__(self, spec: Spec, settings: LorettaSettings) -> None:
        super().__init__(spec, settings)
        self.scale, self.rank = settings.scale, settings.rank
        down, up = _shapes(spec, settings)
        self.down = nn.ParameterList([torch.randn(shape) * shape[0] ** -0.5 for shape in down])
        self.up = nn.ParameterList([torch.randn(shape) * shape[0] ** -0.5 for shape in up])
        with torch.no_grad():
            self.down[0] *= (3 * spec.columns) ** -0.5
            self.up[-1].zero_()

    @classmethod
    def parameter_count(cls, spec: Spec, settings: LorettaSettings) -> int:
        """Number of values in all cores of both trains."""
        return sum(prod(shape) for train in _shapes(spec, settings) for shape in train)

    def structured_factors(self) -> tuple[Factor, Factor]:
        """Both factors as tensor trains over their width, the rank's core contracted into its neighbour."""
        ranks, *ups = self.up
        *downs, last = self.down
        # The core of the rank is small: it goes into its neighbour, so that both are trains over a width alone.
        up = TensorTrainFactor(self.scale * ups[2][:, :, 0].T, ups[1].permute(1, 2, 0),
                               torch.einsum("lik,rl->ikr", ups[0], ranks[0]), turned=True)
        down = TensorTrainFactor(downs[0][0], downs[1].transpose(0, 1),
                                 torch.einsum("kil,lr->ikr", downs[2], last[:, :, 0]))
        return up, down

    def factors(self) -> tuple[Tensor, Tensor]:
        """The trains written out: ``up [rows, rank]`` with the scale, ``down [rank, columns]``."""
        return factor_matrices(*self.structured_factors())


def _shapes(spec: Spec, settings: LorettaSettings) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    return (
        cores((*modes(spec.columns), settings.rank), settings.bond),
        cores((settings.rank, *modes(spec.rows)), settings.bond),
    )


def cores(sizes: tuple[int, ...], bond: int) -> list[tuple[int, int, int]]:
    """Shapes of a train's cores.

    >>> cores((4, 5, 6), 2)
    [(1, 4, 2), (2, 5, 2), (2, 6, 1)]
    """
    last = len(sizes) - 1
    return [(1 if i == 0 else bond, size, 1 if i == last else bond) for i, size in enumerate(sizes)]
