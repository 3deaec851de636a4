"""A Mix: an ordered list of adapters, each with the strength its slider stands at."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.timestep import TimestepTracker


@dataclass(frozen=True, slots=True)
class Mix:
    """Adapters and strengths. 0 is off, 1 is as trained; negative strengths push away."""

    parts: tuple[tuple[AdapterSet, float], ...] = ()

    def active(self) -> Iterator[tuple[AdapterSet, float]]:
        """The parts that do something."""
        return ((adapters, strength) for adapters, strength in self.parts if strength != 0)

    def restrict(self, components: Collection[str]) -> Mix:
        """The same Mix, of these components alone."""
        return Mix(tuple((adapters.restrict(components), strength) for adapters, strength in self.parts))

    def live(self) -> bool:
        """Whether an adapter changes with the timestep or the picture: such a Mix is mounted, never merged."""
        return any(adapter.live for adapters, _ in self.active() for adapter in adapters)

    def timestep_trackers(self) -> list[TimestepTracker]:
        """The trackers of all adapters whose ΔW changes with the timestep."""
        modules = (module for adapters, _ in self.active() for module in adapters.modules())
        return [module for module in modules if isinstance(module, TimestepTracker)]
