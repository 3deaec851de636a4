"""ZipLoRA: two adapters into one by learned mixers, one number for each column of either update."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from atelier.adapters.core.base import Adapter, AdapterSet
from atelier.adapters.formats.low_rank import Pair
from atelier.adapters.fusion.pairwise import Layer, Models, beside, layers
from atelier.adapters.kinds.lora import RankSettings


class Zipped(Adapter):
    """ΔW = ΔW_content · diag(m) + ΔW_style · diag(n)   (ZipLoRA, Shah et al. 2023, arXiv 2311.13600).

    Parameters: 2 · columns, all 1 at the start, where ΔW is the plain sum. It is trained so that the mix does with
    each prompt what its own adapter does alone, while m and n are kept apart (:func:`overlap`). Not in the catalog: it
    is never saved; ``compose.as_lora`` makes the file.
    """

    kind = "zipped"
    title = "ZipLoRA"
    settings = RankSettings

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer.spec, RankSettings())
        self.content_mix = nn.Parameter(torch.ones(layer.spec.columns))
        self.style_mix = nn.Parameter(torch.ones(layer.spec.columns))
        for name, (up, down) in (("content", layer.content), ("style", layer.style)):
            self.register_buffer(f"{name}_up", up)
            self.register_buffer(f"{name}_down", down)

    def factors(self) -> Pair:
        return beside(
            (self.get_buffer("content_up"), self.get_buffer("content_down") * self.content_mix),
            (self.get_buffer("style_up"), self.get_buffer("style_down") * self.style_mix),
        )


def zipped(models: Models, content: AdapterSet, style: AdapterSet) -> AdapterSet:
    """Both adapters with mixers to train; until then the sum.

    Raises:
        MountError: one of them does not fit the base model.
    """
    return AdapterSet(Zipped, RankSettings(), [Zipped(layer) for layer in layers(models, content, style)])


def overlap(adapters: AdapterSet) -> Tensor:
    """Mean |cosine| between the two mixers of each layer, a scalar: what training keeps small."""
    mixers = [(a.content_mix, a.style_mix) for a in adapters if isinstance(a, Zipped)]
    return torch.stack([cosine_similarity(one, two, dim=0).abs() for one, two in mixers]).mean()
