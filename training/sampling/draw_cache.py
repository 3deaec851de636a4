"""What a drawing leaves to the next one with the same model: merged weights, prompts as they were read, the glimpse."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from atelier.adapters.attach.merge import MergeCache
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.sampling.latent_preview import LatentPreview, fit_latent_preview

MAX_CACHED_PROMPTS = 64   # those of Stable Diffusion XL have 0.3 MB each in float16


@dataclass(slots=True)
class DrawCache:
    """Belongs to one loaded base model. Whoever draws often with it keeps this beside it."""

    merges: MergeCache = field(default_factory=MergeCache)
    _texts: OrderedDict[str, PromptEmbeddings] = field(default_factory=OrderedDict)
    _latent_preview: LatentPreview | None = None

    def read(self, model: BaseModel, texts: Sequence[str]) -> list[PromptEmbeddings]:
        """What the UNet reads of each text, as the bare text encoders put it; those read lately are remembered."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        self._texts.update(zip(missing, read(model, missing), strict=True))
        for text in texts:
            self._texts.move_to_end(text)
        found = [self._texts[text] for text in texts]
        while len(self._texts) > MAX_CACHED_PROMPTS:
            self._texts.popitem(last=False)
        return found

    def latent_preview(self, model: BaseModel) -> LatentPreview:
        """The map from latents to colours, found when it is first asked for."""
        if self._latent_preview is None:
            self._latent_preview = fit_latent_preview(model)
        return self._latent_preview


def read(model: BaseModel, texts: Sequence[str], copies: int = 1) -> list[PromptEmbeddings]:
    """What the UNet reads of each text, by the encoders as they are now: ``copies`` rows of each.

    Adapters can make the rows differ. Encoders that wait elsewhere come only if there is something to read.
    """
    if not texts:
        return []
    with model.on_device(*model.text_encoders):
        return [encode_text(model, tokenize(model, [text] * copies)) for text in texts]
