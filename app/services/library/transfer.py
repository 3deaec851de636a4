"""An adapter moved to another base model, without the pictures it was trained on: Trans-LoRA for pictures.

The old base model draws with the adapter, drawings in which it shows are kept, and the new one is trained on them.
Wang et al. 2024, arXiv 2405.17258. Differences: the authors train a discriminator on real inputs, which nobody has
here; a drawing is kept by how far the adapter moved it from the same seed's without, and by how near it is to the rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atelier.app.jobs.jobs import new_run
from atelier.app.services.draw import DrawJob, check_job, draw, suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.services.train import prepare_training
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard
from atelier.app.store.mixes import MixEntry
from atelier.training.config.run_folder import RunFolder
from atelier.training.measures.picture_features import feature_distances, picture_feature
from atelier.training.sampling.sample import DrawRequest

BATCH = 4
LEAST_CHANGE = 4.0   # mean squared difference of colours below which an adapter has done nothing that can be seen
UNCHANGED, OUTLYING = 0.25, 0.2   # shares of the drawings that are left out


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferJob:
    """What is moved, and how."""

    card: AdapterCard
    name: str                  # of the new adapter
    base: str                  # the new base model
    count: int = 24            # drawings, of which about half are kept
    steps: int = 20            # denoising steps of each
    prompts: Sequence[str] = ()   # none: the caption it was trained with
    preset: str = "normal"
    settings: Mapping[str, Any] = field(default_factory=dict)   # of the training


def prepare_transfer(home: Home, engine: Engine, job: TransferJob) -> tuple[RunFolder, int]:
    """Draw the pictures and make the run that trains on them; returns it and how many pictures were kept.

    Raises:
        HomeError: the adapter can't be seen in what it draws, or the name can't be used.
        BaseError, FileError, MountError, SettingError, PictureError: as drawing and training do.
    """
    # Before anything is drawn, and with no picture in the home: what can't be trained is said at once.
    words = {"trigger": job.card.trigger or job.name, "subject": job.card.subject or "object"}
    settings = {**words, **job.settings, "base": job.base}
    drawn, plain = ([picture for prompt in job.prompts or [suggested_prompt(job.card)]
                     for picture in _drawings(home, engine, job, prompt, strength)] for strength in (1.0, 0.0))
    chosen = choose_drawings(drawn, plain)
    if not chosen:
        raise HomeError(f"{job.card.name} hardly changes what {job.card.title or 'its base model'} draws, so there is "
                        "nothing to move. Give a prompt with --prompt that it shows in.")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{job.name}-{place:02}.png" for place in chosen]
        for place, file in zip(chosen, files, strict=True):
            drawn[place].save(file)
        config, _ = prepare_training(home, job.name, files, job.preset, settings)
    return new_run(home, config, started=True), len(chosen)


def choose_drawings(drawn: Sequence[Image.Image], plain: Sequence[Image.Image]) -> list[int]:
    """Places of the drawings to train on, in order; none where the adapter does nothing.

    A quarter goes in which the adapter changed least, then those that changed nothing, a fifth of the rest that is
    farthest from its mean, and all but one of equal ones.

    Args:
        drawn: with the adapter.
        plain: the same prompts and seeds without it.
    """
    features = [picture_feature(picture) for picture in drawn]
    changes = [feature_distances(feature, [picture_feature(other)])[0]
               for feature, other in zip(features, plain, strict=True)]   # fmt: skip
    by_change = sorted(range(len(drawn)), key=lambda place: -changes[place])
    shown = [place for place in by_change[: len(drawn) - int(UNCHANGED * len(drawn))]
             if changes[place] >= LEAST_CHANGE]   # fmt: skip
    distinct = [place for i, place in enumerate(shown) if features[place] not in [features[one] for one in shown[:i]]]
    if not distinct:
        return []
    table = np.array([np.frombuffer(features[place], np.uint8) for place in distinct], np.float32)
    distances = np.square(table - table.mean(0)).mean(1)
    near = np.argsort(distances, kind="stable")[: len(distinct) - int(OUTLYING * len(distinct))]
    return sorted(distinct[place] for place in near)


def _drawings(home: Home, engine: Engine, job: TransferJob, prompt: str, strength: float) -> list[Image.Image]:
    count = -(-job.count // max(1, len(job.prompts)))
    request = DrawRequest.from_dict({"prompt": prompt, "count": count, "steps": job.steps})
    checked = check_job(home, DrawJob(request=request, base=job.card.base,
                                      adapters=(MixEntry(job.card.name, strength),)))   # fmt: skip
    return [picture for picture, _ in draw(engine, checked, batch_size=BATCH)]
