"""What a compression is told: one flat, checked record that round-trips through TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

import tomli_w

from atelier.adapters.core.settings import SettingError, Settings, setting
from atelier.adapters.quantization.bit_policy import PRESETS
from atelier.training.config.train_config import EMBEDDED

JOB = "compress"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressConfig(Settings):
    """Everything that decides the result of a compression. Same config and machine: same codes."""

    job: str = setting(JOB, "What kind of job this is.", choices=(JOB,))
    name: str = setting("", "What you call the compressed base model.")
    base: str = setting(EMBEDDED, "Base model: 'embedded', a diffusers folder, a .safetensors checkpoint, or a hub id.")
    adapters: dict[str, Any] = setting(None, "Adapter files that go into the weights first, with their strengths.")
    preset: str = setting("w4a8", "Bits of weights and of what flows between layers.", choices=tuple(PRESETS))
    steps: int = setting(400, "Updates of learning to be rounded; 0 only calibrates.", low=0, high=1_000_000)
    timesteps: int = setting(20, "Denoising steps of the drawings it learns from.", low=2, high=1000)
    pictures: int = setting(2, "Drawings side by side.", low=1, high=64)
    rank: int = setting(32, "Rank of what each layer learns before it is rounded.", low=1, high=1024)
    search: bool = setting(True, "Search for the range that rounds best, instead of taking the whole.")
    per_timestep: bool = setting(True, "Step sizes of their own at every timestep (TALSQ).")
    scale_aware: bool = setting(True, "Learning rates in proportion to each layer's step size.")
    outliers: bool = setting(True, "Inputs that are known for outliers keep 8 bits where the others have fewer.")
    mixed: float = setting(0.0, "Share of the weights that may have 8 bits, where it helps most.", low=0, high=1)
    sparing: bool = setting(False, "Use less memory, take about a third longer.")
    prompts: str = setting("", "Prompts to draw on the way, one a line; added to a list of its own.")
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", dict(self.adapters or {}))
        Settings.__post_init__(self)
        for path, strength in self.adapters.items():
            if isinstance(strength, bool) or not isinstance(strength, int | float):
                raise SettingError(f"The strength of {path} is {strength!r}, but it must be a number.")

    @property
    def updates(self) -> int:
        """``steps``, up to a whole number of trajectories."""
        return -(-self.steps // self.timesteps) * self.timesteps

    def to_toml(self) -> str:
        """Write as TOML, every field explicit."""
        return tomli_w.dumps(self.to_dict())


def read_compression(text: str) -> CompressConfig | None:
    """Read the recipe of a compression; None where it is another job's.

    Raises:
        SettingError: a field does not fit.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None   # whoever reads the other jobs says what is wrong
    return CompressConfig.from_dict(values) if values.get("job") == JOB else None
