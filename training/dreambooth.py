"""DreamBooth (Ruiz et al. 2023, arXiv 2208.12242) for adapters: a few pictures, a trigger word, prior preservation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atelier.adapters.base import AdapterSet, weight_of
from atelier.adapters.mix import Mix
from atelier.adapters.mount import mounted, target_modules

from .base_model import BaseModel, Text
from .config import TrainConfig
from .events import Previewed
from .latents import Example, encode_text
from .loop import Losses, Recipe
from .losses import min_snr_weights, per_sample
from .noise import add_noise, draw_timesteps
from .prior import draw_prior, fill
from .sample import DrawRequest, draw
from .team import ALONE, Team

VALIDATION_TIMESTEPS = 8
VALIDATION_SEED = 1000
PREVIEW_SEED = 7


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is learned (``subject``), what is to stay as it is (``prior``), and what progress is measured on."""

    subject: list[Example]
    prior: list[Example]
    held_out: list[Example]   # validation pictures: never trained on where there are enough to spare one


def dataset(model: BaseModel, config: TrainConfig, examples: list[Example]) -> Dataset:
    """Hold back one picture in eight for validation and draw the prior pictures.

    With fewer than eight pictures none can be spared: validation then looks at the ones that are trained.
    """
    spare = len(examples) // 8
    prior = draw_prior(model, config) if config.prior_batch else []
    return Dataset(examples[: len(examples) - spare], prior, examples[-spare:] if spare else examples)


def recipe(model: BaseModel, adapters: AdapterSet, data: Dataset, config: TrainConfig, folder: Path) -> Recipe:
    """Tie model, adapters and data together for the loop."""
    text = _TextFeatures(model, trained=bool({"text_encoder", "text_encoder_2"} & adapters.components()))
    text.remember([*data.subject, *data.prior, *data.held_out])
    prior_batch = config.prior_batch if data.prior else 0
    timestep_count = model.scheduler.config.num_train_timesteps

    def microstep(generator: torch.Generator, team: Team = ALONE) -> Losses:
        picked = _pick(data.subject, config.batch, generator) + _pick(data.prior, prior_batch, generator)
        # Spread separately, so that the subject's own timesteps cover the whole range in every batch.
        timesteps = torch.cat([draw_timesteps(n, timestep_count, generator) for n in (config.batch, prior_batch)])
        mine = team.share(len(picked))
        errors = _errors(model, config, picked, timesteps, text, generator, mine=mine)
        subjects = sum(position < config.batch for position in mine)
        subject, prior = errors[:subjects].sum() / config.batch, errors[subjects:].sum() / max(1, prior_batch)
        return Losses(subject, prior * config.prior_weight)

    def validate(weights: AdapterSet) -> float:
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        total = 0.0
        with torch.no_grad(), mounted(model.models(), Mix(((weights, 1.0),))):
            for example in data.held_out:
                timesteps = draw_timesteps(VALIDATION_TIMESTEPS, timestep_count, generator)
                alike = [example] * VALIDATION_TIMESTEPS
                total += _errors(model, config, alike, timesteps, text, generator).mean().item()
        return total / len(data.held_out)

    def preview(weights: AdapterSet, step: int, prompt: str) -> list[Previewed]:
        prompts = [prompt] if prompt else preview_prompts(model, config)
        pictures = [draw_preview(model, config, weights, line) for line in prompts]
        return [
            _keep_preview(picture, line, step, "asked" if prompt else str(i), folder)
            for i, (picture, line) in enumerate(zip(pictures, prompts, strict=True))
        ]

    def reselect() -> None:
        for name, module in target_modules(model.models(), adapters).items():
            adapters[name].reselect(weight_of(module))

    def attached() -> AbstractContextManager[None]:
        return mounted(model.models(), Mix(((adapters, 1.0),)))

    return Recipe(adapters, attached, microstep, validate, preview, reselect)


def preview_prompts(model: BaseModel, config: TrainConfig) -> list[str]:
    """The prompts previews are drawn from: the person's own lines, else the caption template."""
    lines = [line.strip() for line in config.preview_prompts.splitlines() if line.strip()]
    return [
        fill(line, config.trigger_word, config.subject) for line in lines or [config.caption or model.info.caption]
    ]


def draw_preview(model: BaseModel, config: TrainConfig, weights: AdapterSet, prompt: str) -> Image.Image:
    """Draw with a fixed seed, at the size that is trained."""
    side = config.resolution // model.info.multiple * model.info.multiple   # as the buckets are
    request = DrawRequest(prompt=prompt, seed=PREVIEW_SEED, width=side, height=side)
    return draw(model, request, Mix(((weights, 1.0),)))[0]


def _keep_preview(picture: Image.Image, prompt: str, step: int, name: str, folder: Path) -> Previewed:
    path = folder / "previews" / f"{step:06d}-{name}.png"
    picture.save(path)
    return Previewed(step, prompt, f"previews/{path.name}")


def _pick(examples: Sequence[Example], count: int, generator: torch.Generator) -> list[Example]:
    """Draw a batch of one size: the first example at random, the others among those of its bucket."""
    if not count:
        return []
    first = examples[int(torch.randint(len(examples), (1,), generator=generator))]
    alike = [example for example in examples if example.mean.shape == first.mean.shape]
    others = torch.randint(len(alike), (count - 1,), generator=generator).tolist()
    return [first, *(alike[i] for i in others)]


def _errors(
    model: BaseModel, config: TrainConfig, examples: list[Example], timesteps: Tensor, text: _TextFeatures,
    generator: torch.Generator, *, mine: Sequence[int] | None = None,
) -> Tensor:   # fmt: skip
    """Weighted loss of each example ``[B]``, or of those at the positions ``mine``, in their order.

    All randomness is drawn on the CPU and for all of them, so that devices and any number of processes agree.
    """
    mine = range(len(examples)) if mine is None else mine
    clean = [example.sample(generator) for example in examples]
    noise = [torch.randn(latent.shape, generator=generator) for latent in clean]
    errors: dict[int, Tensor] = {}
    for members in _by_size(clean, mine):   # subject and prior pictures may differ in size: one pass each
        where = torch.tensor(members)
        latents, added = (torch.stack([part[i] for i in members]).to(model.device) for part in (clean, noise))
        noisy = add_noise(model.scheduler, latents, added, timesteps[where].to(model.device))
        captions = text([examples[i].tokens for i in members])
        prediction = model.predict(noisy.latents, noisy.timesteps, captions, [examples[i].sizes for i in members])
        weights = min_snr_weights(model.scheduler, noisy.timesteps, config.min_snr_gamma)
        errors.update(zip(members, per_sample(prediction, noisy.target) * weights, strict=True))
    return torch.stack([errors[i] for i in mine]) if mine else torch.zeros(0, device=model.device)


def _by_size(latents: Sequence[Tensor], positions: Sequence[int]) -> list[list[int]]:
    """The positions, grouped by the shape of the latents there."""
    groups: dict[torch.Size, list[int]] = {}
    for i in positions:
        groups.setdefault(latents[i].shape, []).append(i)
    return list(groups.values())


class _TextFeatures:
    """Text features of captions, remembered while the text encoders are frozen."""

    def __init__(self, model: BaseModel, *, trained: bool) -> None:
        self._model = model
        self._remembered: dict[tuple[int, ...], Text] | None = None if trained else {}

    def __call__(self, tokens: list[Tensor]) -> Text:
        """Token ids ``B × [T]`` → what the UNet reads, on its device."""
        if self._remembered is None:
            return encode_text(self._model, torch.stack(tokens))
        rows = [self._row(row, self._remembered) for row in tokens]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Text(torch.cat([row.features for row in rows]), torch.cat(pooled) if pooled else None)

    def remember(self, examples: Sequence[Example]) -> None:
        """Encode the captions of all examples now, so that the text encoders need not stay."""
        if self._remembered is not None:
            with self._model.present(*self._model.encoders):
                for example in examples:
                    self._row(example.tokens, self._remembered)

    def _row(self, tokens: Tensor, remembered: dict[tuple[int, ...], Text]) -> Text:
        key = tuple(tokens.tolist())
        if key not in remembered:
            with torch.no_grad():
                remembered[key] = encode_text(self._model, tokens[None])
        return remembered[key]
