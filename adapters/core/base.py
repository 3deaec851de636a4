"""What an adapter is: a small trainable change ΔW to the weights of a base model's modules.

A *kind* is one subclass of :class:`Adapter`: mathematics only. It gives either an exact low-rank pair
(:meth:`Adapter.factors`) or the dense update (:meth:`Adapter.delta`); forward, merge, counting and export
follow from that. An :class:`AdapterSet` is the saved thing: one adapter per target module, and the modules that
hold what several of them share.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.core.settings import Settings
from atelier.adapters.core.target_ops import apply_with_weight
from atelier.kernels.factor_forms import Factor, dense_factors


@dataclass(frozen=True, slots=True)
class Spec:
    """One target module: its dotted name, component first (``unet.…to_q``), and the shape of its weight.

    The shape is ``[out, in]`` for Linear and ``[out, in / groups, k, k]`` for Conv2d. Imported files may also change
    normalizations, ``[features]``, and leave a side open that they don't tell: 0.
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

    @property
    def features(self) -> int:
        """Input features alone: a column is one of them at one tap of the kernel."""
        return self.shape[1]

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether this is the shape of a module's weight, as far as it is known."""
        return len(shape) == len(self.shape) and all(a in (0, b) for a, b in zip(self.shape, shape, strict=True))

    @property
    def taps(self) -> int:
        """Kernel area: 1 for Linear."""
        return prod(self.shape[2:])


@dataclass(frozen=True, slots=True)
class BaseStatistics:
    """What the base model shows of one target module before training; see ``initialize.py``."""

    weight: Tensor                    # the original W, in its own shape, float32
    inputs: Tensor | None = None      # [k, columns] σᵢ·vᵢ of the inputs, by falling σ: XᵀX ≈ inputsᵀ @ inputs
    gradient: Tensor | None = None    # mean of ∂loss/∂W, in the shape of W, float32
    movement: Tensor | None = None    # |change| of W in a short training of all weights, in the shape of W

    def matrix(self) -> Tensor:
        """W as ``[rows, columns]``."""
        return self.weight.flatten(1)

    def gradient_matrix(self) -> Tensor:
        """The gradient as ``[rows, columns]``."""
        assert self.gradient is not None, "the kind's `wants` did not ask for the gradient"
        return self.gradient.flatten(1)


class Adapter(nn.Module):
    """The change to one module. Parameters are float32 and hold everything the update is made of."""

    kind: ClassVar[str]
    title: ClassVar[str]
    settings: ClassVar[type[Settings]]
    linear_in_strength: ClassVar[bool] = True   # strength·ΔW: False for kinds whose ΔW is not simply scaled
    live: ClassVar[bool] = False   # ΔW depends on the timestep or the picture: mounted, never merged
    recordable: ClassVar[bool] = True   # every step computes the same: it can be recorded as a CUDA graph
    saved_as: ClassVar[str] = ""   # the kind that a finished training is saved as, where that is another one

    def __init__(self, spec: Spec, settings: Any) -> None:   # noqa: ARG002 (kinds read it)
        super().__init__()
        self.spec = spec

    @classmethod
    def create_all(cls, specs: Sequence[Spec], settings: Any) -> tuple[Sequence[Self], dict[str, nn.Module]]:
        """One adapter for each target module, and by name the modules that hold what several of them share."""
        return [cls(spec, settings) for spec in specs], {}

    @classmethod
    def parameter_count(cls, spec: Spec, settings: Any) -> int:
        """Number of trainable values of one module's own: the formula of the kind's docstring."""
        raise NotImplementedError

    @classmethod
    def total_count(cls, specs: Sequence[Spec], settings: Any) -> int:
        """Number of trainable values of a whole set; what modules share is counted once."""
        return sum(cls.parameter_count(spec, settings) for spec in specs)

    @classmethod
    def is_low_rank(cls) -> bool:
        """Whether the kind has exact factors."""
        return cls.factors is not Adapter.factors

    @classmethod
    def required_statistics(cls, settings: Any) -> str:   # noqa: ARG003 (kinds read it)
        """What the start needs to see beside W: ``inputs``, ``gradient``, ``movement``, or nothing (empty)."""
        return ""

    def initialize(self, statistics: BaseStatistics) -> None:
        """Take from the base model what the update is made of. Called once, before training; ΔW stays 0.

        What is taken goes into parameters and buffers, for the file must hold it: a base rounded to another
        precision would give it again only roughly.
        """

    def update_mask(self, weight: Tensor) -> None:
        """Choose anew which values train on. Called once, half way through training; ΔW stays as it is.

        What is chosen goes into buffers, for a run that resumes must hold it.
        """

    @classmethod
    def before_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Change the gradients of a set before an update of the optimizer, or note what it must not change."""

    @classmethod
    def after_update(cls, adapters: AdapterSet, update: OptimizerUpdate) -> None:
        """Change a set after an update: what is trained from now on, or values that the update must not reach.

        What later updates or a file need goes into buffers, for a run that resumes must hold it.
        """

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Exact ``(up [rows, rank], down [rank, columns])`` with ΔW = up @ down, scale included; or None."""
        return None

    def structured_factors(self) -> tuple[Factor, Factor] | None:
        """The same factors in the forms they are kept in, for a merge that reads them like that; or None."""
        factors = self.factors()
        return None if factors is None else dense_factors(factors)

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW in the shape of ``weight``: the base model's original one, in whatever precision it is kept."""
        factors = self.factors()
        if factors is None:
            raise NotImplementedError(f"{type(self).__name__} implements neither factors() nor delta()")
        up, down = factors
        return (up @ down).reshape(weight.shape)

    @property
    def reads_weight(self) -> bool:
        """Whether :meth:`delta` depends on the values of the base model's weight, and not on its shape alone."""
        return True

    @property
    def adds_bias(self) -> bool:
        """Whether anything may be added to the module's bias."""
        return False

    @property
    def needs_bias(self) -> bool:
        """Whether the module must have a bias of its own, for what is added is a change of it."""
        return False

    @property
    def reads_bias(self) -> bool:
        """Whether the change to the bias depends on the base model's."""
        return False

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:   # noqa: ARG002 (imported files read it)
        """Change to the module's ``bias [rows]`` at strength 1, in float32; None where it stays as it is."""
        return None

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether the update can be given for a weight of this shape."""
        return self.spec.matches_shape(shape)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """ΔW applied to the module's input, in the dtype of ``x``: what a mount adds at strength 1."""
        # Only the products with x may be in low precision: ΔW itself is made of differences of large numbers.
        with torch.autocast(x.device.type, enabled=False):
            factors = self.factors()
            # A grouped convolution keeps apart what `up` would mix.
            dense = self.delta(weight_of(module)) if factors is None or getattr(module, "groups", 1) > 1 else None
        if dense is not None:
            return apply_with_weight(module, x, dense.to(x.dtype))
        assert factors is not None
        return self.apply_low_rank(x, module, *factors)

    def apply_low_rank(
        self, x: Tensor, module: nn.Module, up: Tensor, down: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Apply a low-rank pair as two small layers.

        Args:
            x: what the module is given.
            module: the target.
            up: ``[rows, r]``.
            down: ``[r, columns]``.
            mask: ``[pictures, r]``, what each picture's r hidden values are multiplied with.
        """
        hidden = apply_with_weight(module, x, down.to(x.dtype).reshape(-1, *self.spec.shape[1:]))
        is_linear, up = len(self.spec.shape) == 2, up.to(x.dtype)
        if mask is not None:
            ones = [1] * (hidden.dim() - 2)
            hidden = hidden * mask.to(hidden.dtype).reshape(len(mask), *([*ones, -1] if is_linear else [-1, *ones]))
        return F.linear(hidden, up) if is_linear else F.conv2d(hidden, up[:, :, None, None])


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a target module."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a target module; None where it has none."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


class AdapterSet(nn.Module):
    """Everything one adapter file holds: the kind, its settings, one adapter per target module, what they share."""

    def __init__(
        self,
        kind: type[Adapter],
        settings: Settings,
        adapters: Sequence[Adapter],
        *,
        shared: Mapping[str, nn.Module] | None = None,
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind.kind
        self.settings = settings
        self.ranks = dict(ranks or {})   # modules whose rank is not that of the settings
        # ModuleList, not ModuleDict: module names hold dots, which torch does not allow in child names.
        self._adapters = nn.ModuleList(adapters)
        self._shared = nn.ModuleDict(shared or {})
        self._by_name = {adapter.spec.name: adapter for adapter in adapters}   # asked for thousands of times a drawing
        self._scales: dict[str, float] = {}

    def __getitem__(self, name: str) -> Adapter:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def specs(self) -> list[Spec]:
        """The target modules, in the order of the base model."""
        return [adapter.spec for adapter in self]

    def replace_with(self, other: AdapterSet) -> None:
        """Hold what ``other`` holds, so that whoever has this set goes on with the other's adapters."""
        self.settings, self.ranks, self._by_name = other.settings, other.ranks, other._by_name
        self._adapters, self._shared = other._adapters, other._shared

    def restrict(self, components: Collection[str]) -> AdapterSet:
        """The same adapters, of these components alone."""
        view = copy.copy(self)
        view._by_name = {name: each for name, each in self._by_name.items() if name.partition(".")[0] in components}
        return view

    def scale_layers(self, scales: Mapping[str, float]) -> AdapterSet:
        """The same adapters with the updates of some layers multiplied; those multiplied with 0 are left out."""
        view = copy.copy(self)
        view._by_name = {name: each for name, each in self._by_name.items() if scales.get(name, 1.0)}
        view._scales = {name: self.scale_of(name) * scale for name, scale in scales.items()}
        return view

    @property
    def is_scaled(self) -> bool:
        """Whether some layers act at another strength than the rest, or not at all."""
        return any(scale != 1 for scale in self._scales.values())

    def scale_of(self, name: str) -> float:
        """What the update of a layer is multiplied with, besides the strength; 1 as trained."""
        return self._scales.get(name, 1.0)

    def components(self) -> set[str]:
        """The parts of the pipeline that are adapted: ``unet``, ``text_encoder`` …"""
        return {spec.name.split(".", 1)[0] for spec in self.specs}

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers, each once: what a file stores.

        They are called ``<module name>.<tensor name>``, and ``@<shared name>.<tensor name>`` where modules share.
        """
        owners = [(f"@{name}", module) for name, module in self._shared.items()]
        owners += [(adapter.spec.name, adapter) for adapter in self]
        return {f"{owner}.{key}": value for owner, module in owners for key, value in module.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors stored by :meth:`tensors` back.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape; each is named.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
        if wrong:
            raise ValueError(f"this {self.kind} file does not match its own header at: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])
