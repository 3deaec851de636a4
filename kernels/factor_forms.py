"""One factor of a low-rank update, in the form an adapter keeps it; :mod:`weave` reads all of them tile by tile.

A factor stands for a matrix ``[width, rank]``: ``up``, or ``down`` turned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class Factor(Protocol):
    """What every form can do; each is a dataclass of tensors and numbers."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def matrix(self) -> Tensor:
        """The factor written out, ``[width, rank]``."""
        ...


@dataclass(frozen=True, slots=True)
class DenseFactor:
    """A factor written out as one matrix ``values [width, rank]``."""

    values: Tensor   # [width, rank]

    def matrix(self) -> Tensor:
        """The factor written out, ``[width, rank]``."""
        return self.values


def dense_factors(factors: tuple[Tensor, Tensor]) -> tuple[Factor, Factor]:
    """Forms of a pair ``up [rows, rank]``, ``down [rank, columns]`` that is kept as it is."""
    return DenseFactor(factors[0]), DenseFactor(factors[1].T)


def factor_matrices(up: Factor, down: Factor) -> tuple[Tensor, Tensor]:
    """Both factors of an update as ``up [rows, rank]`` and ``down [rank, columns]``."""
    return up.matrix(), down.matrix().T


def factor_to(factor: Factor, device: torch.device) -> Factor:
    """The same factor on a device, in float32."""
    def there(value: Any) -> Any:
        """A field's tensors on the device; other values as they are."""
        if isinstance(value, tuple):
            return tuple(map(there, value))
        return value.to(device, torch.float32) if isinstance(value, Tensor) else value

    return replace(factor, **{field.name: there(getattr(factor, field.name)) for field in fields(factor)})
