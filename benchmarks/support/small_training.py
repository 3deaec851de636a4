"""Short trainings of a loop of their own on the embedded base, judged by the loss on pictures that were held out.

For experiments with what the application's own training loop has no setting for.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import data_hash
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.data.latent_cache import Example
from atelier.training.data.prepare import encode_dataset, scan_pictures
from atelier.training.loop.batch import PromptEmbeddingCache, batch_losses, sample_batch
from atelier.training.loop.noise import sample_timesteps
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine

UNET = ROOT / "assets" / "base" / "unet" / "diffusion_pytorch_model.safetensors"
BATCH = 4
JUDGED = 8   # noises and timesteps for each held-out picture


@dataclass(slots=True)
class Course:
    """A base model and the pictures of one subject, split into those to train on and those held out."""

    model: BaseModel
    config: TrainConfig
    trained: Sequence[Example]
    held_out: Sequence[Example]
    text: PromptEmbeddingCache

    @classmethod
    def of(cls, model: BaseModel, subject: str, trained: int, seed: int = 0) -> Course:
        """The first pictures of an example are trained on."""
        config = TrainConfig.from_dict({
            **{key: value for key, value in load_preset("normal", "embedded").items() if key != "rank"},
            "name": subject, "trigger": "cf", "subject": subject, "seed": seed, "batch": BATCH, "precision": "fp32",
            "pictures": str(ROOT / "assets" / "examples" / subject), "min_snr_gamma": 0.0,
        })   # fmt: skip
        examples = encode_dataset(model, scan_pictures(config))
        text = PromptEmbeddingCache(model, create_adapters("lora", {}, ()))   # the text encoder stays as it is
        model.unet.requires_grad_(False)
        return cls(model, config, examples[:trained], examples[trained:], text)

    def loss(self, examples: Sequence[Example], generator: torch.Generator) -> Tensor:
        """The mean loss of one batch of these examples."""
        chosen = [examples[int(torch.randint(len(examples), (1,), generator=generator))] for _ in range(BATCH)]
        timesteps = sample_timesteps(BATCH, self.model.scheduler.config.num_train_timesteps, generator)
        batch = sample_batch(chosen, timesteps, generator)
        return batch_losses(self.model, self.config, batch, self.text, range(BATCH)).mean()

    @torch.no_grad()
    def judged(self) -> float:
        """The loss on the pictures held out, always at the same noises and timesteps."""
        generator = torch.Generator().manual_seed(99)
        steps = -(-len(self.held_out) * JUDGED // BATCH)
        return sum(self.loss(self.held_out, generator).item() for _ in range(steps)) / steps


def train(course: Course, adapters: AdapterSet, examples: Sequence[Example], steps: int, lr: float, seed: int) -> None:
    """Train an adapter in place with Adam, the base model unchanged."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([one for one in adapters.parameters() if one.requires_grad], lr=lr)
    with mount(course.model.models(), Mix(((adapters, 1.0),))):
        run_steps(lambda: course.loss(examples, generator), [optimizer], steps)


def run_steps(loss: Callable[[], Tensor], optimizers: Iterable[torch.optim.Optimizer], steps: int) -> None:
    """So many updates."""
    optimizers = list(optimizers)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()


def judged_with(course: Course, adapters: AdapterSet) -> float:
    """The loss on the pictures held out, with an adapter at strength 1."""
    with mount(course.model.models(), Mix(((adapters, 1.0),))):
        return course.judged()


def facts() -> dict[str, Any]:
    """The machine, the commit and the base model that a result stands on."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(ROOT)).stdout.strip()
    return {"machine": describe_machine(), "commit": commit, "base": data_hash(UNET)[:12]}
