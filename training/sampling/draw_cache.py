"""What drawings with one model share: merged weights, prompt embeddings, the map of the latent preview."""

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
    """A cache for one loaded base model; kept by callers that draw with it more than once."""

    merges: MergeCache = field(default_factory=MergeCache)
    _texts: OrderedDict[str, PromptEmbeddings] = field(default_factory=OrderedDict)
    _latent_preview: LatentPreview | None = None

    def encode_prompts(self, model: BaseModel, texts: Sequence[str]) -> list[PromptEmbeddings]:
        """Embeddings of each text by the text encoders without adapters; the latest texts are cached."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        self._texts.update(zip(missing, encode_prompts(model, missing), strict=True))
        for text in texts:
            self._texts.move_to_end(text)
        embeddings = [self._texts[text] for text in texts]
        while len(self._texts) > MAX_CACHED_PROMPTS:
            self._texts.popitem(last=False)
        return embeddings

    def latent_preview(self, model: BaseModel) -> LatentPreview:
        """The map from latents to colours, fitted when it is first asked for."""
        if self._latent_preview is None:
            self._latent_preview = fit_latent_preview(model)
        return self._latent_preview


def encode_prompts(model: BaseModel, texts: Sequence[str], copies: int = 1) -> list[PromptEmbeddings]:
    """Embeddings of each text by the text encoders with the adapters mounted now: ``copies`` rows of each.

    Adapters can make the rows differ. Offloaded encoders are loaded only if there is a text to encode.
    """
    if not texts:
        return []
    with model.on_device(*model.text_encoders):
        return [encode_text(model, tokenize(model, [text] * copies)) for text in texts]
