"""One microstep's batch: examples are sampled, noised and put through the UNet; each gives one loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, encode_text
from atelier.training.loop.losses import min_snr_weights, mse_per_sample
from atelier.training.loop.noise import NoisyLatents, add_noise, sample_noise


@dataclass(frozen=True, slots=True)
class AdapterExamples:
    """An adapter and the examples it was trained on; their captions hold its trigger word."""

    adapters: AdapterSet
    examples: Sequence[Example] = ()   # empty where a method needs none


def sample_examples(examples: Sequence[Example], count: int, generator: torch.Generator) -> list[Example]:
    """Sample ``count`` examples of one size by their weights: the first of all, the others of those of its bucket."""
    if not count:
        return []
    [first] = _draw(examples, 1, generator)
    same_size = [example for example in examples if example.mean.shape == first.mean.shape]
    return [first, *_draw(same_size, count - 1, generator)]


def _draw(examples: Sequence[Example], count: int, generator: torch.Generator) -> list[Example]:
    """Draw with replacement, each as often as its weight says."""
    if len({example.weight for example in examples}) <= 1:   # recipes without weights draw as they always have
        numbers = torch.randint(len(examples), (count,), generator=generator)
    else:
        weights = torch.tensor([example.weight for example in examples], dtype=torch.float64)
        numbers = torch.bucketize(torch.rand(count, generator=generator, dtype=torch.float64) * weights.sum(),
                                  weights.cumsum(0), right=True).clamp(max=len(examples) - 1)   # fmt: skip
    return [examples[i] for i in numbers.tolist()]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples and everything random about them. Sampled on the CPU and whole, so that devices and processes agree."""

    examples: Sequence[Example]
    latents: Sequence[Tensor]   # [C, h, w] each
    noise: Sequence[Tensor]     # [C, h, w] each
    timesteps: Tensor           # [B]


def sample_batch(
    examples: Sequence[Example], timesteps: Tensor, generator: torch.Generator, noise_offset: float = 0.0
) -> Batch:
    """Sample a latent of each example and noise for it; ``noise_offset`` as in :func:`sample_noise`."""
    latents = [example.sample(generator) for example in examples]
    return Batch(examples, latents, [sample_noise(one, generator, noise_offset) for one in latents], timesteps)


@dataclass(frozen=True, slots=True)
class UnetInput:
    """Examples of one size, ready for the UNet: everything is on its device."""

    positions: tuple[int, ...]   # in the batch
    noisy: NoisyLatents
    text: PromptEmbeddings
    sizes: Tensor     # [B, 6] micro-conditioning
    weights: Tensor   # [B] of the losses
    mask: Tensor | None = None   # [B, 1, h, w]: which part of each is learned; None: all of all

    def tensors(self) -> list[Tensor]:
        """Every tensor that changes from batch to batch."""
        noisy, text = self.noisy, self.text
        optional = [noisy.latents, noisy.timesteps, noisy.target, text.features, text.pooled, self.sizes, self.weights,
                    self.mask]   # fmt: skip
        return [tensor for tensor in optional if tensor is not None]


def unet_inputs(
    model: BaseModel,
    batch: Batch,
    text: PromptEmbeddingCache,
    local_positions: Sequence[int] | None = None,
    gamma: float = 0.0,
) -> list[UnetInput]:
    """Put a batch on the device and noise it; examples of each size and length of caption together.

    Args:
        model: the base model.
        batch: examples, noise and timesteps.
        text: embeddings of the captions.
        local_positions: the positions that this process computes; None means all.
        gamma: of the Min-SNR loss weights.
    """
    inputs = []
    for positions in _by_size(batch, range(len(batch.latents)) if local_positions is None else local_positions):
        timesteps = batch.timesteps[torch.tensor(positions)]
        latents, noise = (torch.stack([tensors[i] for i in positions]).to(model.device)
                          for tensors in (batch.latents, batch.noise))
        noisy = add_noise(model.scheduler, latents, noise, timesteps.to(model.device))
        examples = [batch.examples[i] for i in positions]
        sizes = torch.tensor([example.sizes for example in examples], dtype=model.dtype)
        weights = min_snr_weights(model.scheduler, timesteps, gamma)
        inputs.append(UnetInput(tuple(positions), noisy, text([example.tokens for example in examples]),
                                sizes.to(model.device), weights.to(model.device), _masks(examples, model.device)))
    return inputs


def _masks(examples: Sequence[Example], device: torch.device) -> Tensor | None:
    """The masks of a batch; those without one are learned whole. None where no example has one."""
    if all(example.mask is None for example in examples):
        return None
    whole = torch.ones(1, *examples[0].mean.shape[1:])
    return torch.stack([whole if example.mask is None else example.mask for example in examples]).to(device)


def predict(model: BaseModel, inputs: UnetInput) -> Tensor:
    """The UNet's prediction ``[B, C, h, w]``."""
    return model.predict(inputs.noisy.latents, inputs.noisy.timesteps, inputs.text, inputs.sizes)


def predictions(
    model: BaseModel, batch: Batch, text: PromptEmbeddingCache, local_positions: Sequence[int] | None = None
) -> Iterator[tuple[tuple[int, ...], NoisyLatents, Tensor]]:
    """Run the UNet once for each size of picture: positions in the batch, its input, its prediction."""
    return ((each.positions, each.noisy, predict(model, each))
            for each in unet_inputs(model, batch, text, local_positions))   # fmt: skip


def example_losses(model: BaseModel, inputs: Sequence[UnetInput], positions: Sequence[int]) -> Tensor:
    """Weighted loss of each example at the ``positions``, in their order. Nothing here waits for the device."""
    losses: dict[int, Tensor] = {}
    for each in inputs:
        weighted = mse_per_sample(predict(model, each), each.noisy.target, each.mask) * each.weights
        losses.update(zip(each.positions, weighted, strict=True))
    return torch.stack([losses[i] for i in positions]) if positions else torch.zeros(0, device=model.device)


def batch_losses(
    model: BaseModel,
    config: TrainConfig,
    batch: Batch,
    text: PromptEmbeddingCache,
    local_positions: Sequence[int] | None = None,
) -> Tensor:
    """Weighted loss of each example ``[B]``, or of those at ``local_positions``, in their order."""
    positions = range(len(batch.examples)) if local_positions is None else local_positions
    return example_losses(model, unet_inputs(model, batch, text, positions, config.min_snr_gamma), positions)


def _by_size(batch: Batch, positions: Sequence[int]) -> list[list[int]]:
    """The positions, grouped by the shape of the latents there and the length of the caption."""
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for i in positions:
        groups.setdefault((batch.latents[i].shape, batch.examples[i].tokens.shape), []).append(i)
    return list(groups.values())


class PromptEmbeddingCache:
    """Embeddings of captions, each computed once as long as the text encoders are frozen.

    ``clip_skip`` layers of the text encoders are left out.
    """

    def __init__(self, model: BaseModel, adapters: AdapterSet, clip_skip: int = 0) -> None:
        self._model, self._clip_skip = model, clip_skip
        trained = {"text_encoder", "text_encoder_2"} & adapters.components()
        self._cache: dict[tuple[int, ...], PromptEmbeddings] | None = None if trained else {}

    def __call__(self, tokens: list[Tensor]) -> PromptEmbeddings:
        """Token ids ``B × [T]`` → embeddings for the UNet, on its device."""
        if self._cache is None:
            return encode_text(self._model, torch.stack(tokens), self._clip_skip)
        rows = [self._row(row, self._cache) for row in tokens]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return PromptEmbeddings(torch.cat([row.features for row in rows]), torch.cat(pooled) if pooled else None)

    def precompute(self, examples: Sequence[Example]) -> None:
        """Encode the captions of all examples now, so that the text encoders can be offloaded."""
        if self._cache is not None:
            with self._model.on_device(*self._model.text_encoders):
                for example in examples:
                    self._row(example.tokens, self._cache)

    def _row(self, tokens: Tensor, cache: dict[tuple[int, ...], PromptEmbeddings]) -> PromptEmbeddings:
        key = tuple(tokens.tolist())
        if key not in cache:
            with torch.no_grad():
                cache[key] = encode_text(self._model, tokens[None], self._clip_skip)
        return cache[key]
