"""One microstep's pictures: picked, noised, shown to the model, and how wrong it was about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, encode_text
from atelier.training.loop.losses import min_snr_weights, per_sample
from atelier.training.loop.noise import Noisy, add_noise


def pick(examples: Sequence[Example], count: int, generator: torch.Generator) -> list[Example]:
    """Draw a batch of one size: the first example at random, the others among those of its bucket."""
    if not count:
        return []
    first = examples[int(torch.randint(len(examples), (1,), generator=generator))]
    alike = [example for example in examples if example.mean.shape == first.mean.shape]
    others = torch.randint(len(alike), (count - 1,), generator=generator).tolist()
    return [first, *(alike[i] for i in others)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples with all that is random about them. Drawn on the CPU and whole, so that devices and processes agree."""

    examples: Sequence[Example]
    clean: Sequence[Tensor]   # a latent each
    noise: Sequence[Tensor]
    timesteps: Tensor         # [B]


def draw_batch(examples: Sequence[Example], timesteps: Tensor, generator: torch.Generator) -> Batch:
    """Draw a latent of each example and noise for it."""
    clean = [example.sample(generator) for example in examples]
    return Batch(examples, clean, [torch.randn(latent.shape, generator=generator) for latent in clean], timesteps)


@dataclass(frozen=True, slots=True)
class Shown:
    """Pictures of one size as the UNet sees them, all on its device: what a microstep works on from there."""

    members: tuple[int, ...]   # positions in the batch
    noisy: Noisy
    text: PromptEmbeddings
    sizes: Tensor     # [B, 6]
    weights: Tensor   # [B], of the losses

    def tensors(self) -> list[Tensor]:
        """Everything in it that changes from batch to batch."""
        given = [self.noisy.latents, self.noisy.timesteps, self.noisy.target, self.text.features, self.text.pooled]
        return [tensor for tensor in (*given, self.sizes, self.weights) if tensor is not None]


def show(
    model: BaseModel, batch: Batch, text: PromptEmbeddingCache, mine: Sequence[int] | None = None, gamma: float = 0.0
) -> list[Shown]:
    """Put a batch on the device and noise it; pictures of each size together.

    Args:
        model: the base model.
        batch: pictures, noise and timesteps.
        text: features of captions.
        mine: the positions that this process computes; None means all.
        gamma: of Min-SNR loss weights.
    """
    found = []
    for members in _by_size(batch.clean, range(len(batch.clean)) if mine is None else mine):
        timesteps = batch.timesteps[torch.tensor(members)]
        latents, added = (torch.stack([part[i] for i in members]).to(model.device)
                          for part in (batch.clean, batch.noise))
        noisy = add_noise(model.scheduler, latents, added, timesteps.to(model.device))
        examples = [batch.examples[i] for i in members]
        sizes = torch.tensor([example.sizes for example in examples], dtype=model.dtype)
        weights = min_snr_weights(model.scheduler, timesteps, gamma)
        found.append(Shown(tuple(members), noisy, text([example.tokens for example in examples]),
                           sizes.to(model.device), weights.to(model.device)))
    return found


def answer(model: BaseModel, shown: Shown) -> Tensor:
    """Run the UNet."""
    return model.predict(shown.noisy.latents, shown.noisy.timesteps, shown.text, shown.sizes)


def passes(
    model: BaseModel, batch: Batch, text: PromptEmbeddingCache, mine: Sequence[int] | None = None
) -> Iterator[tuple[tuple[int, ...], Noisy, Tensor]]:
    """Run the UNet: positions in the batch, what it saw, what it answered. One pass for each size of picture."""
    return ((one.members, one.noisy, answer(model, one)) for one in show(model, batch, text, mine))


def errors(model: BaseModel, shown: Sequence[Shown], mine: Sequence[int]) -> Tensor:
    """Weighted loss of each example at the positions ``mine``, in their order. Nothing here waits for the device."""
    found: dict[int, Tensor] = {}
    for one in shown:
        found.update(zip(one.members, per_sample(answer(model, one), one.noisy.target) * one.weights, strict=True))
    return torch.stack([found[i] for i in mine]) if mine else torch.zeros(0, device=model.device)


def weighted_errors(
    model: BaseModel, config: TrainConfig, batch: Batch, text: PromptEmbeddingCache, mine: Sequence[int] | None = None
) -> Tensor:
    """Weighted loss of each example ``[B]``, or of those at the positions ``mine``, in their order."""
    mine = range(len(batch.examples)) if mine is None else mine
    return errors(model, show(model, batch, text, mine, config.min_snr_gamma), mine)


def _by_size(latents: Sequence[Tensor], positions: Sequence[int]) -> list[list[int]]:
    """The positions, grouped by the shape of the latents there."""
    groups: dict[torch.Size, list[int]] = {}
    for i in positions:
        groups.setdefault(latents[i].shape, []).append(i)
    return list(groups.values())


class PromptEmbeddingCache:
    """Text features of captions, remembered while the text encoders are frozen."""

    def __init__(self, model: BaseModel, adapters: AdapterSet) -> None:
        self._model = model
        trained = {"text_encoder", "text_encoder_2"} & adapters.components()
        self._remembered: dict[tuple[int, ...], PromptEmbeddings] | None = None if trained else {}

    def __call__(self, tokens: list[Tensor]) -> PromptEmbeddings:
        """Token ids ``B × [T]`` → what the UNet reads, on its device."""
        if self._remembered is None:
            return encode_text(self._model, torch.stack(tokens))
        rows = [self._row(row, self._remembered) for row in tokens]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return PromptEmbeddings(torch.cat([row.features for row in rows]), torch.cat(pooled) if pooled else None)

    def remember(self, examples: Sequence[Example]) -> None:
        """Encode the captions of all examples now, so that the text encoders need not stay."""
        if self._remembered is not None:
            with self._model.on_device(*self._model.text_encoders):
                for example in examples:
                    self._row(example.tokens, self._remembered)

    def _row(self, tokens: Tensor, remembered: dict[tuple[int, ...], PromptEmbeddings]) -> PromptEmbeddings:
        key = tuple(tokens.tolist())
        if key not in remembered:
            with torch.no_grad():
                remembered[key] = encode_text(self._model, tokens[None])
        return remembered[key]
