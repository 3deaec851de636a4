"""What a running training measures beside its validation loss: memorization, drift, gain by timestep, memory.

A measurement takes about a fiftieth of the time of the steps between two of them (docs/training-measures.md). Its noise
is its own, so that a run gives the same weights with measurements and without.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.base_models.device import has_own_memory
from atelier.training.config.events import Measured
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.loop.batch import PromptEmbeddingCache
from atelier.training.measures.memorization import Membership, gains, membership_auc
from atelier.training.measures.prediction_change import encode_prompts, predict_prompts, relative_changes

OTHER_PROMPTS = 3
DRIFT_TIMESTEPS = (0.85,)


def other_prompts(model: BaseModel) -> list[str]:
    """Prompts that have nothing to do with a run's subject, of things that the base model knows."""
    own = model.info.prior_prompts or tuple(f"a photo of a {thing}" for thing in model.info.things)
    return list(own[:: max(1, len(own) // OTHER_PROMPTS)][:OTHER_PROMPTS])


@dataclass(frozen=True)
class RunMeasures:
    """The measurements of one run; the base model's side of each is measured once, when it is needed first."""

    model: BaseModel
    config: TrainConfig
    text: PromptEmbeddingCache
    membership: Membership
    encoded: list[PromptEmbeddings] | None   # the other prompts and an empty one; None where the text encoder learns

    @classmethod
    def of(
        cls, model: BaseModel, config: TrainConfig, text: PromptEmbeddingCache,
        pairs: Sequence[tuple[Example, Example]],
    ) -> RunMeasures:   # fmt: skip
        """Prepare the measurements of a run on pairs of a trained picture and one that it is not trained on."""
        membership = Membership.of(pairs, model.scheduler.config.num_train_timesteps)
        encoded = None if config.train_text_encoder else encode_prompts(model, [*other_prompts(model), ""])
        return cls(model, config, text, membership, encoded)

    def __call__(self, weights: AdapterSet, step: int) -> Measured:
        """Measure ``weights``, those of ``step``."""
        base_losses, base_predictions = self._base
        with mount(self.model.models(), Mix(((weights, 1.0),))):
            gain = gains(base_losses, self._losses())
            drift = relative_changes(base_predictions[:-1], base_predictions[-1:], self._predictions())
        members, others = gain.mean((1, 2)).tolist()
        return Measured(step, members, others, membership_auc(gain), drift.mean().item(),
                        [round(one, 4) for one in gain[1].mean(0).tolist()], used_memory(self.model.device))

    @cached_property
    def _base(self) -> tuple[Tensor, Tensor]:
        return self._losses(), self._predictions(unconditional=True)

    def _losses(self) -> Tensor:
        return self.membership.losses(self.model, self.config, self.text)

    def _predictions(self, *, unconditional: bool = False) -> Tensor:
        texts = self.encoded or encode_prompts(self.model, [*other_prompts(self.model), ""])
        return predict_prompts(self.model, texts if unconditional else texts[:-1], DRIFT_TIMESTEPS)


def used_memory(device: torch.device) -> int:
    """Most bytes that this process has used so far, of a card where it computes on one."""
    if has_own_memory(device) and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024   # Linux counts in kilobytes
