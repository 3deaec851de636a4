"""T-LoRA: at noisy timesteps only some of the directions learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import setting
from atelier.adapters.core.timestep import TimestepTracker
from atelier.adapters.kinds.low_rank.rank_settings import RankSettings

START = 0.125   # of every direction's gain


@dataclass(frozen=True, kw_only=True, slots=True)
class TLoraSettings(RankSettings):
    """Settings of a LoRA whose rank depends on the timestep while it is trained."""

    rank: int = setting(16, "Rank: number of orthogonal directions.", low=1, high=1024)
    least: int = setting(8, "Directions that learn from pure noise, where places and backgrounds are over-fitted; 1 is "
                            "strictest, the rank is no limit at all.", low=1, high=1024)   # fmt: skip


class TLora(Adapter):
    """ΔW = scale · (P diag(g) Q − P₀ diag(g₀) Q₀), P and Q orthogonal at the start   (T-LoRA, arXiv 2507.05964).

    P ``[rows, r]`` = P₀ + ``up``, Q ``[r, columns]`` = Q₀ + ``down``, g ``[r]`` = 1/8 + ``gain``, r = min(rank, rows,
    columns); P₀ and Q₀ (``first_up``, ``first_down``) are fixed and in the file.
    Parameters: min(rank, rows, columns) · (rows + columns + 1). Start: all three zero, so ΔW = 0 exactly. An exact LoRA
    of rank 2 · r.

    While it is trained, a picture at timestep t of 1000 uses and teaches only the first ⌊(1 − t / 1000) · (r − least)⌋
    + least directions. From noise one learns where things stand, which few pictures over-fit; details are learned near
    the end. Difference: afterwards all directions act at every timestep, so that it merges and leaves as a LoRA; the
    authors keep the mask when they draw. Their start is the SVD of noise with gains that differ a thousandfold between
    widths; here it is the QR of noise with one gain for all layers.
    """

    kind = "t-lora"
    title = "T-LoRA (rank by timestep)"
    settings = TLoraSettings
    first_up: Tensor
    first_down: Tensor

    def __init__(self, spec: Spec, settings: TLoraSettings, timestep: TimestepTracker | None = None) -> None:
        super().__init__(spec, settings)
        rank = min(settings.rank, spec.rows, spec.columns)
        self.scale, self.least, self.timestep = settings.scale, settings.least, timestep or TimestepTracker()
        self.up, self.down = nn.Parameter(torch.zeros(spec.rows, rank)), nn.Parameter(torch.zeros(rank, spec.columns))
        self.gain = nn.Parameter(torch.zeros(rank))
        self.register_buffer("first_up", torch.linalg.qr(torch.randn(spec.rows, rank)).Q)
        self.register_buffer("first_down", torch.linalg.qr(torch.randn(spec.columns, rank)).Q.T.contiguous())

    @classmethod
    def create_all(cls, specs: Sequence[Spec], settings: TLoraSettings) -> tuple[Sequence[Self], dict[str, nn.Module]]:
        """Adapters that look at one timestep."""
        timestep = TimestepTracker()
        return [cls(spec, settings, timestep) for spec in specs], {"timestep": timestep}

    @classmethod
    def parameter_count(cls, spec: Spec, settings: TLoraSettings) -> int:
        """r · (rows + columns + 1)."""
        return min(settings.rank, spec.rows, spec.columns) * (spec.rows + spec.columns + 1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The pair of all directions, ``[rows, 2·r]`` with the scale and ``[2·r, columns]``; exactly 0 at the start."""
        before, now = self.first_up * START, (self.first_up + self.up) * (START + self.gain)
        return torch.cat([before, now - before], 1) * self.scale, torch.cat([self.down, self.first_down + self.down])

    def directions(self, progress: Tensor) -> Tensor:
        """Which directions a picture uses in training ``[pictures, r]``, by how far its denoising has come, 0 to 1."""
        rank = len(self.gain)
        least = min(self.least, rank)
        count = (progress * (rank - least) + 1e-6).floor() + least   # 1 − t/1000 is not exact
        return torch.arange(rank, device=progress.device) < count[:, None]

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """ΔW x; while it is trained on a UNet, of the directions of each picture's timestep."""
        is_trained = torch.is_grad_enabled() and self.up.requires_grad and self.spec.name.startswith("unet")
        if not is_trained or not self.timestep.has_seen_timestep or getattr(module, "groups", 1) > 1:
            return super().forward(x, module)
        with torch.autocast(x.device.type, enabled=False):
            up, down = self.factors()
        mask = self.directions(self.timestep.batch_progress.to(x.device)).repeat(1, 2)
        return self.apply_low_rank(x, module, up, down, mask)
