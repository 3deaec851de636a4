"""Memorization: whether an adapter has learned the subject, or its training pictures by heart.

On the same noise and timesteps, a picture that is trained on (a member) is compared with one that is not. Each gains:
its loss with the adapter is lower than that of the base model alone. A subject that is understood gains alike on both;
one that is learned by heart gains on the members alone. The measure is the AUC of a membership test on these gains
(loss-threshold attack, Yeom et al. 2018, arXiv 1709.01604, on diffusion losses as Carlini et al. 2023, arXiv
2301.13188), with the base model's loss as the reference that takes out how hard a picture is.

Where no picture can be spared, each member is compared with its own middle, enlarged: a view that the training has not
seen. Its gain follows that of pictures that were held out (docs/training-measures.md); a mirror image does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.loop.batch import Batch, PromptEmbeddingCache, batch_losses
from atelier.training.loop.health import NOISE_LEVELS

SEED = 2000
BATCH = 8   # as in a validation, which the plan of the memory knows


@dataclass(frozen=True, slots=True)
class Membership:
    """Pictures that are trained on, and those they are compared with: pair by pair the same noise and timesteps."""

    members: Batch
    others: Batch

    @classmethod
    def of(cls, pairs: Sequence[tuple[Example, Example]], timestep_count: int) -> Membership:
        """Noise the pairs, a member and another picture of its size each, for a schedule of so many timesteps."""
        generator = torch.Generator().manual_seed(SEED)
        noise = [[torch.randn(member.mean.shape, generator=generator) for _ in NOISE_LEVELS] for member, _ in pairs]
        members, others = zip(*pairs, strict=True)
        return cls(_batch(members, noise, timestep_count), _batch(others, noise, timestep_count))

    def losses(self, model: BaseModel, config: TrainConfig, text: PromptEmbeddingCache) -> Tensor:
        """Losses of the model as it is now ``[2, pictures, timesteps]``: of the members, then of the others."""
        with torch.no_grad():
            rows = [_losses(model, config, batch, text) for batch in (self.members, self.others)]
        return torch.stack(rows).view(2, -1, len(NOISE_LEVELS))


def make_pairs(
    members: Sequence[Example], held_out: Sequence[Example], views: Sequence[Example], most: int
) -> list[tuple[Example, Example]]:
    """Pair members with held-out pictures of their size, else with views of their own.

    Args:
        members: pictures that are trained on.
        held_out: pictures that are not; none where none can be spared.
        views: of the members, in their order; none where there are held-out pictures.
        most: pairs times timesteps; where there is a partner at all, one pair is made at least.
    """
    pairs = []
    for i, member in enumerate(members):
        same_size = [example for example in held_out if example.mean.shape == member.mean.shape]
        if same_size:
            pairs.append((member, same_size[i % len(same_size)]))
        elif i < len(views):
            pairs.append((member, views[i]))
    return pairs[: max(1, most // len(NOISE_LEVELS))]


def gains(base: Tensor, now: Tensor) -> Tensor:
    """The share of the base model's losses that is gone."""
    return 1 - now / base


def membership_auc(gain: Tensor) -> float:
    """How often a member gains more than another picture at the same timestep; 0.5 is chance.

    Args:
        gain: ``[2, pictures, timesteps]``, members first.
    """
    members, others = gain[0][:, None], gain[1][None]   # every member with every other picture
    return float(((members > others).float() + 0.5 * (members == others).float()).mean())


def measure_pairs(batch: int, every: int) -> int:
    """How many pairs a measurement may have, so that it takes about a fiftieth of the time of the steps before it.

    Args:
        batch: examples of a step; each costs a forward and a backward pass, about three forward passes.
        every: steps between measurements.
    """
    return max(len(NOISE_LEVELS), min(64, math.floor(0.01 * 3 * batch * every)))


def _batch(examples: Sequence[Example], noise: Sequence[Sequence[Tensor]], timestep_count: int) -> Batch:
    timesteps = torch.tensor([int(share * timestep_count) for share in NOISE_LEVELS] * len(examples))
    each = [example for example in examples for _ in NOISE_LEVELS]
    return Batch(each, [example.mean for example in each], [one for row in noise for one in row], timesteps)


def _losses(model: BaseModel, config: TrainConfig, batch: Batch, text: PromptEmbeddingCache) -> Tensor:
    positions = range(len(batch.examples))
    parts = [positions[i : i + BATCH] for i in range(0, len(positions), BATCH)]
    unweighted = replace(config, min_snr_gamma=0.0)
    return torch.cat([batch_losses(model, unweighted, batch, text, part) for part in parts]).cpu()
