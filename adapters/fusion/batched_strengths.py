"""Many mixes of two adapters at once: every picture of a batch has strengths of its own.

By linearity: what the content adds, what the style adds and, for split adapters, what both add together are factors
that are computed once; a picture's strengths only scale the rank between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.timestep import TimestepTracker
from atelier.adapters.formats.low_rank import Pair
from atelier.adapters.fusion.break_for_make_halves import combine_halves, strength_terms
from atelier.adapters.fusion.pairwise import Models, pair_layers, project_out_style, switch_points
from atelier.adapters.kinds.break_for_make import BreakForMake
from atelier.adapters.kinds.lora import RankSettings
from atelier.kernels.torch_internals import conv_with_weight

UNTRAINED_METHODS = ("break-for-make", "sum", "np", "k")
"""Those that need no training, so that strengths can move while somebody looks."""


Term = tuple[Pair, tuple[int, int]]   # factors, and the powers of the content's and the style's strength


class BatchStrengths(nn.Module):
    """Content and style strengths, one pair for each picture of a batch."""

    values: Tensor

    def __init__(self, values: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(values))   # [N, 2]


class BatchedStrengthAdapter(Adapter):
    """ΔW of picture n = Σ contentₙ^i · styleₙ^j · up @ down, over pairs that each have their (i, j).

    A batch of several times N pictures, as guidance makes it, has the strengths again and again. Not in the catalog:
    it is made for drawing, never trained and never saved.
    """

    kind = "blended"
    title = "Two strengths"
    settings = RankSettings
    live = True

    def __init__(self, spec: Spec, terms: Sequence[Term], strengths: BatchStrengths) -> None:
        super().__init__(spec, RankSettings())
        self._strengths = (strengths,)   # in a tuple, for the set holds it once for all
        self.register_buffer("up", torch.cat([up for (up, _), _ in terms], 1))
        self.register_buffer("down", torch.cat([down for (_, down), _ in terms]))
        powers = [power for (_, down), power in terms for _ in range(len(down))]
        self.register_buffer("powers", torch.tensor(powers).reshape(-1, 2))

    def gains(self) -> Tensor:
        """What each picture multiplies each rank with, ``[N, rank]``."""
        values = self._strengths[0].values
        return (values[:, None, :] ** self.get_buffer("powers")).prod(-1)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """ΔWₙ xₙ for every picture of the batch ``x [k·N, …]``, each with its own strengths."""
        up, down = self.get_buffer("up").to(x), self.get_buffer("down").to(x)
        gains = self.gains().to(x)
        gains = gains.repeat(len(x) // len(gains), 1)
        if isinstance(module, nn.Conv2d):
            hidden = conv_with_weight(module, x, down.reshape(-1, *self.spec.shape[1:]))
            return conv2d(hidden * gains[:, :, None, None], up[:, :, None, None])
        return linear(linear(x, down) * gains.reshape(len(x), *(1 for _ in range(x.dim() - 2)), -1), up)


class BatchedKLora(BatchedStrengthAdapter):
    """The same for K-LoRA: the content's part until the clock says it is time, then the style's."""

    def __init__(
        self, spec: Spec, terms: Sequence[Term], strengths: BatchStrengths, share: float, clock: TimestepTracker
    ) -> None:
        super().__init__(spec, terms, strengths)
        self.share, self._clock = share, (clock,)

    def gains(self) -> Tensor:
        """Of the two parts only the one whose time it is."""
        side = 0 if self._clock[0].progress < self.share else 1
        return super().gains() * (self.get_buffer("powers")[:, side] == 1)


def combine_batched(
    models: Models, content: AdapterSet, style: AdapterSet, method: str, strengths: Sequence[tuple[float, float]]
) -> AdapterSet:
    """Both in one, to draw a batch in which every picture has its own ``(content, style)`` strengths.

    Raises:
        SettingError: a method that has to be trained, or none.
        BasisError: ``break-for-make`` needs two halves that fit together.
        MountError: one of them does not fit the base model.
    """
    values = BatchStrengths(strengths)
    shared: dict[str, nn.Module] = {"strengths": values}
    match method:
        case "break-for-make":
            halves = [adapter for adapter in combine_halves(content, style) if isinstance(adapter, BreakForMake)]
            adapters = [BatchedStrengthAdapter(half.spec, strength_terms(half), values) for half in halves]
        case "sum" | "np":
            found = pair_layers(models, content, style)
            firsts = [project_out_style(layer) if method == "np" else layer.content for layer in found]
            adapters = [BatchedStrengthAdapter(layer.spec, _separate_terms(first, layer.style), values)
                        for layer, first in zip(found, firsts, strict=True)]
        case "k":
            found, shared["clock"] = pair_layers(models, content, style), (clock := TimestepTracker())
            adapters = [BatchedKLora(layer.spec, _separate_terms(layer.content, layer.style), values, share, clock)
                        for layer, share in zip(found, switch_points(found), strict=True)]
        case _:
            raise SettingError(f"{method} has to be trained, so its strengths can't be changed live. Use one of: "
                               f"{', '.join(UNTRAINED_METHODS)}.")
    return AdapterSet(BatchedStrengthAdapter, RankSettings(), adapters, shared=shared)


def _separate_terms(content: Pair, style: Pair) -> list[Term]:
    return [(content, (1, 0)), (style, (0, 1))]
