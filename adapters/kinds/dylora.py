"""DyLoRA: one LoRA that is good at every rank up to its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.kinds.lora import Lora, LoraSettings, RankSettings


class Dylora(Adapter):
    """ΔW = alpha / b · up[:, :b] @ down[:b], b = rank when used   (Valipour et al. 2022, arXiv 2210.07558).

    Shapes: ``up [rows, rank]``, ``down [rank, columns]``. Parameters: rank · (rows + columns).
    Start: ``up`` zero, so ΔW = 0; ``down`` Kaiming-uniform with a = √5.
    While gradients are recorded, b is drawn anew from 1 … rank after every update, so the first rows learn to do
    alone; :func:`extract_lora` then takes a LoRA of any rank out of the file.
    Difference: every layer draws its own b, where the authors draw one for all; and all b rows are trained, not the
    last alone.
    """

    kind = "dylora"
    title = "DyLoRA"
    settings = RankSettings

    def __init__(self, spec: Spec, settings: RankSettings) -> None:
        super().__init__(spec, settings)
        self.alpha = settings.alpha or settings.rank
        self.down = nn.Parameter(torch.empty(settings.rank, spec.columns))
        self.up = nn.Parameter(torch.zeros(spec.rows, settings.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    @classmethod
    def parameter_count(cls, spec: Spec, settings: RankSettings) -> int:
        """rank · (rows + columns)."""
        return settings.rank * (spec.rows + spec.columns)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The first b ranks scaled by alpha / b: b is drawn while training, else it is the whole rank."""
        rank = self.sample_rank() if torch.is_grad_enabled() and self.up.requires_grad else len(self.down)
        return self.up[:, :rank] * (self.alpha / rank), self.down[:rank]

    def sample_rank(self) -> int:
        """b for the present weights.

        Their last bits are as good as a die, and come again when a run resumes or a layer is computed twice.
        """
        bits = sum(factor.detach().view(torch.int32).sum(dtype=torch.int64) for factor in (self.up, self.down))
        return int(bits % len(self.down)) + 1

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW at the full rank, whether or not gradients are recorded."""
        return (self.up * (self.alpha / len(self.down)) @ self.down).reshape(weight.shape)


def extract_lora(adapters: AdapterSet, rank: int) -> AdapterSet:
    """The LoRA of ``rank`` inside a DyLoRA.

    Raises:
        ValueError: the adapters are of another kind, or have fewer ranks.
    """
    settings = adapters.settings
    if adapters.kind != Dylora.kind or not isinstance(settings, RankSettings) or not 1 <= rank <= settings.rank:
        raise ValueError(f"{adapters.kind} with {settings.to_dict()} can't be truncated to rank {rank}")
    smaller = LoraSettings(rank=rank, alpha=settings.alpha or settings.rank)
    loras = [Lora(spec, smaller) for spec in adapters.specs]
    with torch.no_grad():
        for lora, whole in zip(loras, adapters, strict=True):
            assert isinstance(whole, Dylora)
            lora.up.copy_(whole.up[:, :rank])
            lora.down.copy_(whole.down[:rank])
    return AdapterSet(Lora, smaller, loras).requires_grad_(False)
