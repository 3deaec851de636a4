"""Gates: how much of each adapter a layer lets through, for every channel and token (AutoLoRA, arXiv 2508.02107).

One gate a layer, shared by all adapters, so any number of any kind can be mixed in any order. Gates are trained once
for a base model (``training/recipes/gates.py``) and belong to it; the equation is in ``kernels/gated_sum.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Spec
from atelier.adapters.core.settings import Settings, setting
from atelier.adapters.formats.adapter_info import GateInfo, is_gates
from atelier.adapters.formats.native import read_metadata, read_tensors, write_tensors
from atelier.adapters.formats.safetensors_header import FileError
from atelier.kernels.gated_sum import GateVectors, gated_sum, gates

WAVES = 8   # of the timestep: sine and cosine of so many / 2 frequencies
_FAITHFUL_OUT = 0.512   # w_o of the authors' training script


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSettings(Settings):
    """What gates look at, and what they start from."""

    start: str = setting("sum", "'sum' starts as the plain sum, 'faithful' with random gates, as the authors do.",
                         choices=("sum", "faithful"))
    terms: str = setting("all", "'no-base' leaves out the layer's own output (as in the authors' training script); "
                                "'no-cross' leaves out the product of both.", choices=("all", "no-base", "no-cross"))
    timed: bool = setting(False, "Whether a gate also sees the timestep itself. If off, it sees the timestep only "
                                 "through the activations.")


class Gate(nn.Module):
    """One layer's gate: 9·m values for an output width m, and 8·m more with a timestep term.

    ``sum`` starts with logits 0 and w_o = 2, which is the plain sum exactly; ``faithful`` with N(0, 1) and w_o = 0.512.
    The timestep term is Σ wⱼ · waveⱼ(progress) for each channel, 0 at the start: our addition.
    """

    def __init__(self, width: int, settings: GateSettings) -> None:
        super().__init__()
        faithful, zeros = settings.start == "faithful", torch.zeros(width)
        self.out = nn.Parameter(torch.full((width,), _FAITHFUL_OUT if faithful else 2.0))
        for name, left_out in (("of_base", "no-base"), ("of_part", ""), ("of_both", "no-cross"), ("bias", "")):
            value = torch.randn(width) if faithful else zeros.clone()
            if settings.terms == left_out:
                self.register_buffer(name, zeros.clone())
            else:
                self.register_parameter(name, nn.Parameter(value))
        for name in ("base", "part"):
            self.register_parameter(f"{name}_gain", nn.Parameter(torch.ones(width)))
            self.register_parameter(f"{name}_shift", nn.Parameter(zeros.clone()))
        self.waves = nn.Parameter(torch.zeros(width, WAVES)) if settings.timed else None

    def vectors(self) -> GateVectors:
        """The gate as its kernel takes it."""
        return GateVectors(*(getattr(self, name) for name in GateVectors._fields))

    def offset(self, moments: Tensor, dimensions: int) -> Tensor | None:
        """What the timestep adds to the logits, ``[B or 1, 1 …, m]``; None without that term."""
        if self.waves is None:
            return None
        seen = _waves(moments.to(self.waves.device)) @ self.waves.T
        return seen.reshape(len(moments), *(1 for _ in range(dimensions - 2)), -1)

    def forward(self, base: Tensor, parts: Tensor, moments: Tensor) -> Tensor:
        """``base [B, …, m]`` with ``parts [K, B, …, m]`` added, each through its gate; ``moments [B or 1]`` 0 … 1."""
        return gated_sum(base, parts, self.vectors(), self.offset(moments, base.dim()))

    @torch.no_grad()
    def mean_gate(self, base: Tensor, parts: Tensor, moments: Tensor) -> Tensor:
        """Mean of w_o ⊙ g over tokens and channels, ``[K]``: 1 is an adapter as in the plain sum."""
        opened = gates(base, parts, self.vectors(), self.offset(moments, base.dim())) * self.out
        return opened.flatten(1).mean(1)


def _waves(moments: Tensor) -> Tensor:
    """Sine and cosine of progress at 1, 2, 4 … half turns, ``[B] → [B, WAVES]``."""
    turns = math.pi * 2.0 ** torch.arange(WAVES // 2, device=moments.device)
    angles = moments[:, None] * turns
    return torch.cat([angles.sin(), angles.cos()], 1)


class GateSet(nn.Module):
    """The gates of a base model's layers: what one file holds."""

    def __init__(self, specs: Iterable[Spec], settings: GateSettings = GateSettings(), family: str = "") -> None:
        super().__init__()
        self.settings, self.family = settings, family
        self._widths = {spec.name: spec.rows for spec in specs}
        self._places = {name: i for i, name in enumerate(self._widths)}
        self._gates = nn.ModuleList(Gate(width, settings) for width in self._widths.values())

    def get(self, name: str) -> Gate | None:
        """A layer's gate; None where there is none, and adapters are added plainly."""
        place = self._places.get(name)
        gate = None if place is None else self._gates[place]
        assert gate is None or isinstance(gate, Gate)
        return gate

    def __iter__(self) -> Iterator[str]:
        return iter(self._widths)

    def __len__(self) -> int:
        return len(self._widths)

    def tensors(self) -> dict[str, Tensor]:
        """All values by ``<module name>.<vector>``: what a file stores."""
        return {f"{name}.{key}": value for name in self for key, value in self._gates[self._places[name]]
                .state_dict().items()}   # fmt: skip

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors stored by :meth:`tensors` back.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
        if wrong:
            raise ValueError(f"these gates do not match their own header at: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])

    def save(self, path: Path, metadata: Mapping[str, str] | None = None, *, steps: int | None = None) -> None:
        """Write the gates in half precision, with further text entries and the steps of their training, if given."""
        info = GateInfo(family=self.family, widths=self._widths, settings=self.settings.to_dict(), steps=steps)
        halves = {key: value.detach().cpu().half().contiguous() for key, value in self.tensors().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, halves, {**(metadata or {}), **info.to_metadata()})

    @classmethod
    def load(cls, path: Path) -> GateSet:
        """Read what :meth:`save` wrote, frozen and in float32.

        Raises:
            FileError: there is no such file, or it holds no gates.
        """
        metadata = read_metadata(path)
        if not is_gates(metadata):
            raise FileError(
                f"{path.name} contains no gates. Train some with: python -m atelier.training.runs.train_gates."
            )
        try:
            info = GateInfo.from_metadata(metadata)
            settings = GateSettings.from_dict(info.settings)
            gates = cls([Spec(name, (width,)) for name, width in info.widths.items()], settings, info.family)
            gates.load_tensors(read_tensors(path))
        except (KeyError, ValueError) as error:
            raise FileError(f"{path.name} is damaged ({error}). Download or copy the file again.") from None
        return gates.requires_grad_(False)


@dataclass(slots=True)
class GateRecord:
    """What gates did: for layers, and for the timesteps in the order of drawing, the mean of w_o ⊙ g of each part."""

    layers: dict[str, list[Tensor]] = field(default_factory=dict)       # each [K], part by part; NaN: not there
    moments: dict[float, list[Tensor]] = field(default_factory=dict)    # by progress

    def add_step(self, name: str, progress: float, opened: Tensor) -> None:
        """Take down one layer's gates at one step."""
        self.layers.setdefault(name, []).append(opened)
        self.moments.setdefault(round(progress, 4), []).append(opened)

    def by_layer(self) -> dict[str, list[float]]:
        """Mean over the steps: a row for each layer, a number for each part."""
        return {name: _mean(seen) for name, seen in self.layers.items()}

    def by_timestep(self) -> dict[float, list[float]]:
        """Mean over the layers: a row for each step."""
        return {progress: _mean(seen) for progress, seen in sorted(self.moments.items())}


def _mean(seen: Sequence[Tensor]) -> list[float]:
    return torch.stack(list(seen)).nanmean(0).tolist()
