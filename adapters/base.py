"""What an adapter is: a small trainable change ΔW to the weights of a base model's modules.

A *kind* is one subclass of :class:`Adapter`: mathematics only. It gives either an exact low-rank pair
(:meth:`Adapter.factors`) or the dense update (:meth:`Adapter.delta`); forward, merge, counting and export
follow from that. An :class:`AdapterSet` is the saved thing: one adapter per target module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import Settings


@dataclass(frozen=True, slots=True)
class Spec:
    """One target module: its dotted name, component first (``unet.…to_q``), and the shape of its weight.

    The shape is ``[out, in]`` for Linear and ``[out, in / groups, k, k]`` for Conv2d.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Output features: rows of the weight seen as a matrix."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Input features times kernel area: columns of the weight seen as a matrix."""
        return prod(self.shape[1:])


class Adapter(nn.Module):
    """The change to one module. Parameters are float32 and hold everything the update is made of."""

    kind: ClassVar[str]
    title: ClassVar[str]
    settings: ClassVar[type[Settings]]
    linear_in_strength: ClassVar[bool] = True   # strength·ΔW: False for kinds whose ΔW is not simply scaled

    def __init__(self, spec: Spec, settings: Any) -> None:   # noqa: ARG002 (kinds read it)
        super().__init__()
        self.spec = spec

    @classmethod
    def parameter_count(cls, spec: Spec, settings: Any) -> int:
        """Number of trainable values for one module: the formula of the kind's docstring."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Exact ``(up [rows, rank], down [rank, columns])`` with ΔW = up @ down, scale included; or None."""
        return None

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW in the shape of ``weight``, which must be the base model's original weight."""
        factors = self.factors()
        if factors is None:
            raise NotImplementedError(f"{type(self).__name__} gives neither factors() nor delta()")
        up, down = factors
        return (up @ down).reshape(weight.shape)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """ΔW applied to the module's input, in the dtype of ``x``: what a mount adds at strength 1."""
        factors = self.factors()
        # A grouped convolution keeps apart what `up` would mix.
        if factors is None or getattr(module, "groups", 1) > 1:
            return _apply(module, x, self.delta(_weight(module)).to(x.dtype))
        up, down = (factor.to(x.dtype) for factor in factors)
        hidden = _apply(module, x, down.reshape(-1, *self.spec.shape[1:]))
        return F.linear(hidden, up) if len(self.spec.shape) == 2 else F.conv2d(hidden, up[:, :, None, None])


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _apply(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Run the module's own operation, without bias, with another weight."""
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(x, weight, None)   # unlike F.conv2d, knows circular and reflected borders
    return F.linear(x, weight)


class AdapterSet(nn.Module):
    """Everything one adapter file holds: the kind, its settings, and one adapter per target module."""

    def __init__(self, kind: type[Adapter], settings: Settings, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.kind = kind.kind
        self.settings = settings
        # ModuleList, not ModuleDict: module names hold dots, which torch does not allow in child names.
        self._adapters = nn.ModuleList(adapters)
        self._index = {adapter.spec.name: i for i, adapter in enumerate(adapters)}

    def __getitem__(self, name: str) -> Adapter:
        adapter = self._adapters[self._index[name]]
        assert isinstance(adapter, Adapter)
        return adapter

    def __iter__(self) -> Iterator[Adapter]:
        return (self[name] for name in self._index)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def specs(self) -> list[Spec]:
        """The target modules, in the order of the base model."""
        return [adapter.spec for adapter in self]

    def components(self) -> set[str]:
        """The parts of the pipeline that are adapted: ``unet``, ``text_encoder`` …"""
        return {spec.name.split(".", 1)[0] for spec in self.specs}

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers under ``<module name>.<tensor name>``: what a file stores."""
        return {f"{a.spec.name}.{key}": value for a in self for key, value in a.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors stored by :meth:`tensors` back.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape; each is named.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
        if wrong:
            raise ValueError(f"this {self.kind} file does not fit its own header at: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])
