"""One adapter of two, a content and a style of the library, as ``atelier make`` and the Mix Lab do it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import load_adapter, read_header
from atelier.adapters.fusion.break_for_make_halves import scale_halves
from atelier.adapters.fusion.pairwise import to_lora
from atelier.app.jobs.jobs import find_run
from atelier.app.services.draw import trained_options
from atelier.app.store.base_settings import base_options
from atelier.app.store.home import Home, HomeError, explain_write_errors
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Stepped
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.data.prepare import encode_dataset, scan_pictures
from atelier.training.loop.batch import AdapterExamples
from atelier.training.recipes.combine_two import combine_adapters, training_config
from atelier.training.recipes.companions import with_role_caption
from atelier.training.runs.save_adapter import save_with_metadata

BEST_METHOD = "sum"
"""The default: the best one of ``docs/content_style.md``."""
STYLE_STRENGTHS = {"sum": 0.75, "np": 0.75}
"""Defaults below 1: with these methods a style at full strength changes the content too much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineJob:
    """Two adapters to combine, and how."""

    name: str
    content: AdapterCard
    style: AdapterCard
    method: str
    steps: int
    strengths: tuple[float, float] = (1.0, 1.0)   # content, style


def combine(home: Home, job: CombineJob) -> Iterator[Stepped | AdapterCard]:
    """Make one adapter of two: yields each training step, and at the end the new adapter's card.

    Raises:
        HomeError: the two belong to different base models, or pictures they were trained on are needed and missing.
        BaseError, BasisError, FileError, MountError, SettingError: as loading, combining and training do.
    """
    if job.content.family != job.style.family:
        raise HomeError(f"{job.content.name} was made for {job.content.title} and {job.style.name} for "
                        f"{job.style.title}. Choose two adapters for the same base model.")
    configs = [_train_config(home, card, job) for card in (job.content, job.style)] if job.steps else []
    base = job.content.base or EMBEDDED
    model = load(base, options=trained_options(job.content).or_else(base_options(home, base)))
    examples = [encode_dataset(model, scan_pictures(config), config.caption_chunks) for config in configs] or [[], []]
    training = None
    if job.steps:
        first = configs[0]
        training = training_config(job.method, steps=job.steps, batch=first.batch, lr=first.lr, seed=first.seed)
    combined: AdapterSet | None = None
    for event in combine_adapters(model, *_with_examples(model, job, examples), job.method, training):
        if isinstance(event, Stepped):
            yield event
        elif isinstance(event, AdapterSet):
            combined = event
    assert combined is not None
    if job.method == "break-for-make":
        combined = scale_halves(combined, content=job.strengths[0], style=job.strengths[1])
    yield find_adapter(home, _save(home, job, model, combined).stem)


def _with_examples(
    model: BaseModel, job: CombineJob, examples: list[list[Example]]
) -> tuple[AdapterExamples, AdapterExamples]:
    """Both adapters at their strengths; those of Break-for-Make are applied to the result."""
    loaded = [load_adapter(card.path, model.device) for card in (job.content, job.style)]
    if job.method != "break-for-make" and job.strengths != (1, 1):
        loaded = [to_lora(model.models(), part, s) for part, s in zip(loaded, job.strengths, strict=True)]
    content, style = (AdapterExamples(*pair) for pair in zip(loaded, examples, strict=True))
    return content, style


def _train_config(home: Home, card: AdapterCard, job: CombineJob) -> TrainConfig:
    """The configuration an adapter was trained with, which names its pictures."""
    try:
        config = with_role_caption(find_run(home, read_header(card.path).info.run).config())
    except HomeError:
        config = None
    if config is None or not Path(config.pictures).is_dir():
        cure = "use --steps 0" if job.method == "break-for-make" else "use the method np or sum"
        raise HomeError(f"{job.method} needs the pictures that {card.name} was trained on, but they no longer "
                        f"exist. To do without them, {cure}.")
    return config


def _save(home: Home, job: CombineJob, model: BaseModel, combined: AdapterSet) -> Path:
    """Write the file. Its caption names both, because the Studio suggests it as the prompt."""
    config = TrainConfig(
        name=job.name, trigger=job.content.trigger, subject=job.content.subject or "object",
        base=job.content.base or EMBEDDED, caption=caption_for_both(model.info, job.style.trigger),
        kind=combined.kind, steps=job.steps or 1,
    )   # fmt: skip
    info = AdapterInfo(method=job.method, content=job.content.name, style=job.style.name,
                       pictures=job.content.pictures + job.style.pictures)   # fmt: skip
    with explain_write_errors(home.adapters):
        home.adapters.mkdir(parents=True, exist_ok=True)
        return save_with_metadata(combined, config, model, info, home.adapters)


def caption_for_both(info: BaseInfo, style: str) -> str:
    """Caption template for a content in a style; ``{trigger}`` and ``{subject}`` are those of the content."""
    return info.style_caption(style, "{trigger} {subject}")
