"""Spectral shifts: SVDiff moves the singular values of W, SODA turns its inputs as well."""

from __future__ import annotations

import weakref
from typing import Any, Self

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings
from atelier.adapters.kinds.factorize import modes
from atelier.kernels.torch_internals import version_of


class CachedSvd:
    """The singular value decomposition of the last weight it was asked for.

    It is twice as large as W, so files do not hold it and copies of an adapter share one.
    """

    def __init__(self) -> None:
        self._of: Any = lambda: None
        self._known: tuple[Any, tuple[Tensor, Tensor, Tensor]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """U ``[rows, m]``, S ``[m]``, V ``[m, columns]`` of ``weight`` as a matrix, m the smaller side."""
        state = (version_of(weight), weight.data_ptr(), dtype, weight.device)
        if self._of() is not weight or self._known is None or self._known[0] != state:
            u, s, v = torch.linalg.svd(weight.detach().flatten(1).to(dtype), full_matrices=False)
            self._of, self._known = weakref.ref(weight), (state, (u, s, v))
        return self._known[1]


class Svdiff(Adapter):
    """ΔW = U · diag(shift) · V, with W = U · diag(S) · V   (SVDiff, Han et al. 2023, arXiv 2303.11305).

    Shapes: ``shift [min(rows, columns)]``. Parameters: min(rows, columns). Start: ``shift`` zero, so ΔW = 0.
    U and V come from the base again whenever the adapter is used: it belongs to that base, to the digit. Where two
    singular values are nearly alike, another rounding of W mixes their directions.
    Difference: the paper's S + shift stops at 0 (ReLU), where no gradient would ever lift it again; here it goes on
    below 0, which turns one direction round.
    """

    kind = "svdiff"
    title = "SVDiff"
    settings = Settings

    def __init__(self, spec: Spec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.shift = nn.Parameter(torch.zeros(min(spec.rows, spec.columns)))
        self.svd = CachedSvd()

    @classmethod
    def parameter_count(cls, spec: Spec, settings: Settings) -> int:   # noqa: ARG003
        """min(rows, columns): one shift for each singular value."""
        return min(spec.rows, spec.columns)

    def delta(self, weight: Tensor) -> Tensor:
        """U · diag(shift) · V in the shape of ``weight``, whose SVD is computed once and kept."""
        u, _, v = self.svd(weight, self.shift.dtype)
        return ((u * self.shift) @ v).reshape(weight.shape)


class Soda(Svdiff):
    """W + ΔW = U · diag(S + shift) · V · Q, Q a rotation of the inputs   (SODA, Zhang et al. 2024, arXiv 2405.21050).

    Q = Q₁ ⊗ Q₂ ⊗ Q₃ over the three modes of the input features, for every tap of a kernel alike. Each is a Cayley
    transform (1 + A)⁻¹(1 − A) of a skew matrix, whose lower triangle is ``turn_d [mode · (mode − 1) / 2]``.
    Parameters: min(rows, columns) + sum(i · (i − 1) // 2 for i in modes(features)). Start: all zero, so Q = 1 and
    ΔW = 0: what is applied is the difference to U · diag(S) · V formed the same way.
    Difference: the authors start the shift at 0.001, which is a change, and train Q on the Stiefel manifold with an
    optimizer of its own; Cayley's transform stays there with any optimizer.
    """

    kind = "soda"
    title = "SODA"
    settings = Settings

    def __init__(self, spec: Spec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.turn = nn.ParameterList([torch.zeros(i * (i - 1) // 2) for i in modes(spec.features) if i > 1])

    @classmethod
    def parameter_count(cls, spec: Spec, settings: Settings) -> int:
        """min(rows, columns) and the lower triangles of the three skew matrices."""
        return super().parameter_count(spec, settings) + sum(i * (i - 1) // 2 for i in modes(spec.features))

    def rotation(self, below: Tensor, size: int) -> Tensor:
        """The orthogonal ``[size, size]`` matrix of one mode."""
        one = torch.eye(size, dtype=below.dtype, device=below.device)
        rows, columns = torch.tril_indices(size, size, -1, device=below.device)
        skew = torch.zeros_like(one).index_put((rows, columns), below)
        skew = skew - skew.T
        return torch.linalg.solve(one + skew, one - skew)

    def delta(self, weight: Tensor) -> Tensor:
        """The shifted and rotated W less the W formed the same way, so that the start is exactly zero."""
        u, s, v = self.svd(weight, self.shift.dtype)
        sizes = [i for i in modes(self.spec.features) if i > 1]
        turned = (u * (s + self.shift)) @ v
        whole = turned.reshape(self.spec.rows, *sizes, self.spec.taps)
        for axis, (below, size) in enumerate(zip(self.turn, sizes, strict=True), 1):
            last = whole.movedim(axis, -1)
            whole = (last.reshape(-1, size) @ self.rotation(below, size)).reshape(last.shape).movedim(-1, axis)
        return whole.reshape(weight.shape) - ((u * s) @ v).reshape(weight.shape)
