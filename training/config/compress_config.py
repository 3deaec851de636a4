"""What a compression is told: one flat, checked record that round-trips through TOML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tomli_w

from atelier.adapters.core.parse import parse_toml
from atelier.adapters.core.settings import SettingError, Settings, setting
from atelier.adapters.quantization.bit_policy import PRESETS
from atelier.training.config.base_options import AUTO_PREDICTION, PREDICTIONS, BaseOptions
from atelier.training.config.train_config import EMBEDDED

JOB = "compress"
INPUT_RANGES = ("auto", "calibrated", "dynamic")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressConfig(Settings):
    """Everything that decides the result of a compression. Same config and machine: same codes."""

    job: str = setting(JOB, "What kind of job this is.", choices=(JOB,))
    name: str = setting("", "Name of the compressed base model.")
    base: str = setting(EMBEDDED, "Base model: 'embedded', a diffusers folder, a .safetensors checkpoint, or a hub id.")
    prediction: str = setting(AUTO_PREDICTION, "What the base model's UNet predicts. 'auto' reads it from its files.",
                              choices=PREDICTIONS)
    vae: str = setting("", "Another VAE for the base model: a .safetensors file or a diffusers folder. Empty means its "
                           "own.")
    adapters: dict[str, Any] = setting(None, "Adapter files to merge into the weights first, with their strengths.")
    preset: str = setting("w4a8", "Bits of weights (w) and activations (a).", choices=tuple(PRESETS))
    steps: int = setting(400, "Training steps. 0 only calibrates.", low=0, high=1_000_000)
    timesteps: int = setting(20, "Denoising steps of the pictures it is trained on.", low=2, high=1000)
    pictures: int = setting(2, "Pictures drawn at once.", low=1, high=64)
    rank: int = setting(32, "Rank of the correction that each layer learns before it is quantized.", low=1, high=1024)
    search: bool = setting(True, "Search for the quantization range with the smallest error, instead of using the full "
                                 "range.")
    input_ranges: str = setting("auto", "Where the range of a layer's input comes from: 'calibrated', once for all, or "
                                        "'dynamic', each input's own. 'auto': dynamic below 8 bits.",
                                choices=INPUT_RANGES)
    per_timestep: bool = setting(True, "Learn separate step sizes of calibrated ranges for every timestep (TALSQ).")
    scale_aware: bool = setting(True, "Scale learning rates by each layer's step size.")
    outliers: bool = setting(True, "Keep 8 bits for inputs that are known for outliers.")
    mixed: float = setting(0.0, "Share of the weights that may keep 8 bits, where it helps most.", low=0, high=1)
    sparing: bool = setting(False, "Use less memory, but take about a third longer.")
    prompts: str = setting("", "Prompts to train on, one per line, in addition to a built-in list.")
    seed: int = setting(0, "Random seed.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", dict(self.adapters or {}))
        Settings.__post_init__(self)
        for path, strength in self.adapters.items():
            if isinstance(strength, bool) or not isinstance(strength, int | float):
                raise SettingError(f"The strength of {path} is {strength!r}, but it must be a number.")

    @property
    def base_options(self) -> BaseOptions:
        """How the base model is loaded."""
        return BaseOptions(self.prediction, self.vae)

    @property
    def dynamic(self) -> bool:
        """Whether each input has its own range."""
        return self.input_ranges == "dynamic" or (self.input_ranges == "auto" and 0 < PRESETS[self.preset].inputs < 8)

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
        values = parse_toml(text)
    except ValueError:
        return None   # whoever reads the other jobs says what is wrong
    return CompressConfig.from_dict(values) if values.get("job") == JOB else None
