"""``atelier make``: a content and a style of the library into one adapter."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import load_adapter, read_header
from atelier.adapters.fusion.break_for_make_halves import scale_halves
from atelier.adapters.fusion.pairwise import to_lora
from atelier.app.jobs.jobs import find_run
from atelier.app.store.home import Home, HomeError, explain_write_errors, new_name
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Stepped
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.data.latent_cache import Example
from atelier.training.data.prepare import encode_dataset, scan_pictures
from atelier.training.loop.batch import AdapterExamples
from atelier.training.recipes.combine_two import METHOD_STEPS, combine_adapters, training_config
from atelier.training.recipes.companions import with_role_caption
from atelier.training.runs.save_adapter import save_with_metadata

BEST_METHOD = "sum"
"""What two adapters are mixed by unless somebody says otherwise: the best of ``docs/content_style.md``."""
STYLE_STRENGTHS = {"sum": 0.75, "np": 0.75}
"""A style at full strength swallows the thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineJob:
    """What a person asks for; checked, and nothing made yet."""

    name: str
    content: AdapterCard
    style: AdapterCard
    method: str
    steps: int
    strengths: tuple[float, float] = (1.0, 1.0)   # content, style


def run_combine(home: Home, arguments: Namespace) -> AdapterCard:
    """Make what the command line asks for and show how far it is.

    Raises:
        HomeError, BaseError, BasisError, MountError, SettingError: what was typed can't be used.
    """
    content, style = (find_adapter(home, name) for name in (arguments.content, arguments.style))
    method = arguments.method or BEST_METHOD
    usual = METHOD_STEPS[method]
    recipe = CombineJob(
        name=new_name(home, arguments.name), content=content, style=style, method=method,
        steps=(usual if arguments.steps is None else arguments.steps) if usual else 0,
        strengths=(arguments.content_strength, default_style_strength(method, arguments.style_strength)),
    )   # fmt: skip
    with tqdm(total=recipe.steps, unit="step", leave=False, disable=None, file=sys.stderr) as bar:
        for news in combine(home, recipe):
            if isinstance(news, AdapterCard):
                return news
            bar.update()
    raise AssertionError("a making ends with a card")


def default_style_strength(method: str, asked: float | None) -> float:
    """How much of the style: what was asked for, else what kept the thing best in ``docs/content_style.md``."""
    return asked if asked is not None else STYLE_STRENGTHS.get(method, 1.0)


def combine(home: Home, recipe: CombineJob) -> Iterator[Stepped | AdapterCard]:
    """Make one adapter of two: yields each training step, and at last the new adapter's card.

    Raises:
        HomeError: the two belong to different base models, or their pictures are needed and gone.
        BaseError, BasisError, FileError, MountError, SettingError: as loading, uniting and training do.
    """
    if recipe.content.family != recipe.style.family:
        raise HomeError(f"{recipe.content.name} was made for {recipe.content.title} and {recipe.style.name} for "
                        f"{recipe.style.title}. Choose two adapters for the same base model.")
    lessons = [_training_recipe(home, card, recipe) for card in (recipe.content, recipe.style)] if recipe.steps else []
    model = load(recipe.content.base or EMBEDDED)
    taught = [encode_dataset(model, scan_pictures(lesson)) for lesson in lessons] or [[], []]
    config = None
    if recipe.steps:
        first = lessons[0]
        config = training_config(recipe.method, steps=recipe.steps, batch=first.batch, lr=first.lr, seed=first.seed)
    made: AdapterSet | None = None
    for news in combine_adapters(model, *_loaded_pair(model, recipe, taught), recipe.method, config):
        if isinstance(news, Stepped):
            yield news
        elif isinstance(news, AdapterSet):
            made = news
    assert made is not None
    if recipe.method == "break-for-make":
        made = scale_halves(made, content=recipe.strengths[0], style=recipe.strengths[1])
    yield find_adapter(home, _save(home, recipe, model, made).stem)


def _loaded_pair(
    model: BaseModel, recipe: CombineJob, taught: list[list[Example]]
) -> tuple[AdapterExamples, AdapterExamples]:
    """Both adapters, each at its strength; Break-for-Make's halves get theirs in the end."""
    loaded = [load_adapter(card.path, model.device) for card in (recipe.content, recipe.style)]
    if recipe.method != "break-for-make" and recipe.strengths != (1, 1):
        loaded = [to_lora(model.models(), part, s) for part, s in zip(loaded, recipe.strengths, strict=True)]
    content, style = (AdapterExamples(*pair) for pair in zip(loaded, taught, strict=True))
    return content, style


def _training_recipe(home: Home, card: AdapterCard, recipe: CombineJob) -> TrainConfig:
    """The recipe an adapter was taught with, which knows its pictures."""
    try:
        config = with_role_caption(find_run(home, read_header(card.path).info.run).config())
    except HomeError:
        config = None
    if config is None or not Path(config.pictures).is_dir():
        cure = "use --steps 0" if recipe.method == "break-for-make" else "use the method np or sum"
        raise HomeError(f"{recipe.method} needs the pictures that {card.name} was trained on, but they no longer "
                        f"exist. To do without them, {cure}.")
    return config


def _save(home: Home, recipe: CombineJob, model: BaseModel, made: AdapterSet) -> Path:
    """Write the file. Its caption calls both: that is the prompt the Studio proposes."""
    config = TrainConfig(
        name=recipe.name, trigger=recipe.content.trigger, subject=recipe.content.subject or "object",
        base=recipe.content.base or EMBEDDED, caption=caption_for_both(model.info, recipe.style.trigger),
        kind=made.kind, steps=recipe.steps or 1,
    )   # fmt: skip
    info = AdapterInfo(method=recipe.method, content=recipe.content.name, style=recipe.style.name,
                       pictures=recipe.content.pictures + recipe.style.pictures)   # fmt: skip
    with explain_write_errors(home.adapters):
        home.adapters.mkdir(parents=True, exist_ok=True)
        return save_with_metadata(made, config, model, info, home.adapters)


def caption_for_both(info: BaseInfo, style: str) -> str:
    """Caption template that calls a content in a style: ``{trigger}`` and ``{subject}`` are the content's."""
    return info.style_caption(style, "{trigger} {subject}")
