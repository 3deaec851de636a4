"""ZipLoRA: two adapters into one by learned mixers, one number for each column of either update."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from atelier.adapters.core.base import Adapter, AdapterSet
from atelier.adapters.formats.low_rank import Pair
from atelier.adapters.fusion.pairwise import LayerPair, Models, add_factors, pair_layers
from atelier.adapters.kinds.lora import RankSettings


class ZipLora(Adapter):
    """ΔW = ΔW_content · diag(m) + ΔW_style · diag(n)   (ZipLoRA, Shah et al. 2023, arXiv 2311.13600).

    Parameters: 2 · columns, all 1 at the start, where ΔW is the plain sum. Training brings the sum's predictions for
    each prompt close to those of the prompt's own adapter, and m and n away from each other
    (:func:`mixer_similarity`). Not in the catalog, for it is never saved: ``pairwise.to_lora`` makes the file.
    """

    kind = "zipped"
    title = "ZipLoRA"
    settings = RankSettings

    def __init__(self, layer: LayerPair) -> None:
        super().__init__(layer.spec, RankSettings())
        self.content_mix = nn.Parameter(torch.ones(layer.spec.columns))
        self.style_mix = nn.Parameter(torch.ones(layer.spec.columns))
        for name, (up, down) in (("content", layer.content), ("style", layer.style)):
            self.register_buffer(f"{name}_up", up)
            self.register_buffer(f"{name}_down", down)

    def factors(self) -> Pair:
        """Both pairs side by side, of rank r_content + r_style; each ``down`` is scaled column by column."""
        return add_factors(
            (self.get_buffer("content_up"), self.get_buffer("content_down") * self.content_mix),
            (self.get_buffer("style_up"), self.get_buffer("style_down") * self.style_mix),
        )


def create_ziplora(models: Models, content: AdapterSet, style: AdapterSet) -> AdapterSet:
    """Both adapters with mixers to train; until then the sum.

    Raises:
        MountError: one of them does not fit the base model.
    """
    return AdapterSet(ZipLora, RankSettings(), [ZipLora(layer) for layer in pair_layers(models, content, style)])


def mixer_similarity(adapters: AdapterSet) -> Tensor:
    """Mean |cosine| between the two mixers of each layer, a scalar: what training keeps small."""
    mixers = [(a.content_mix, a.style_mix) for a in adapters if isinstance(a, ZipLora)]
    return torch.stack([cosine_similarity(one, two, dim=0).abs() for one, two in mixers]).mean()
