"""What drawings with one model share: merged weights, prompt embeddings, the latent preview's map, memory savings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from atelier.adapters.attach.merge import MergeCache
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.textual_inversion import TextualInversion
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.latent_preview import LatentPreview, fit_latent_preview
from atelier.training.sampling.prompt_encoding import PromptReading, encode_prompt

MAX_CACHED_PROMPTS = 64   # those of Stable Diffusion XL have 0.3 MB each in float16


@dataclass(slots=True)
class DrawCache:
    """A cache for one loaded base model; kept by callers that draw with it more than once.

    ``savings``: what the drawings do to need less memory. Where parts of the model are is for its owner to choose.
    ``inversions``: textual inversions whose words the prompts of the next drawing may have.
    """

    savings: DrawSavings = DrawSavings()
    inversions: tuple[TextualInversion, ...] = ()
    merges: MergeCache = field(default_factory=MergeCache)        # of the UNet
    text_merges: MergeCache = field(default_factory=MergeCache)   # of the text encoders
    _texts: OrderedDict[tuple[str, PromptReading], PromptEmbeddings] = field(default_factory=OrderedDict)
    _latent_preview: LatentPreview | None = None

    def retain(self, adapters: Sequence[AdapterSet]) -> None:
        """Drop what a drawing with these adapters will not use."""
        active = {adapter for each in adapters for adapter in each}
        for name in ("merges", "text_merges"):
            if self.savings.mount:
                setattr(self, name, MergeCache())
            getattr(self, name).retain(active)

    def encode_prompts(
        self, model: BaseModel, texts: Sequence[str], reading: PromptReading = PromptReading()
    ) -> list[PromptEmbeddings]:
        """Embeddings of each text by the text encoders without adapters; the latest texts are cached."""
        missing = [text for text in dict.fromkeys(texts) if (text, reading) not in self._texts]
        fresh = encode_prompts(model, missing, reading)
        self._texts.update({(text, reading): found for text, found in zip(missing, fresh, strict=True)})
        for text in texts:
            self._texts.move_to_end((text, reading))
        embeddings = [self._texts[text, reading] for text in texts]
        while len(self._texts) > MAX_CACHED_PROMPTS:
            self._texts.popitem(last=False)
        return embeddings

    def latent_preview(self, model: BaseModel) -> LatentPreview:
        """The map from latents to colours, fitted when it is first asked for."""
        if self._latent_preview is None:
            self._latent_preview = fit_latent_preview(model)
        return self._latent_preview


def encode_prompts(
    model: BaseModel, texts: Sequence[str], reading: PromptReading = PromptReading(), copies: int = 1
) -> list[PromptEmbeddings]:
    """Embeddings of each text by the text encoders with the adapters mounted now: ``copies`` rows of each.

    Adapters can make the rows differ. Offloaded encoders are loaded only if there is a text to encode.
    """
    if not texts:
        return []
    with model.on_device(*model.text_encoders):
        found = {text: encode_prompt(model, text, reading, copies) for text in dict.fromkeys(texts)}
    return [found[text] for text in texts]
