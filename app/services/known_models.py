"""Well-known base models that can be downloaded: which there are, and what they need of the memory here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache

from atelier.adapters.core.family import FAMILIES
from atelier.app.text import settings as words
from atelier.training.base_models.base_info import BaseError, BaseInfo, make_info, read_json
from atelier.training.base_models.device import best_device
from atelier.training.base_models.hub import needs_download
from atelier.training.base_models.precision import AUTO, drawing_dtype
from atelier.training.base_models.single_file import MODELS
from atelier.training.config.assets import ASSETS
from atelier.training.config.train_config import TrainConfig, load_preset, preset_names
from atelier.training.runs.memory_savings import forecast_memory
from atelier.training.sampling.draw_memory import plan_drawing
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An entry of ``assets/known_models.toml``."""

    id: str        # on the hub
    title: str
    family: str    # name of its Family
    licence: str
    bytes: int     # that are downloaded
    about: str     # a sentence


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a model needs here, in bytes without savings; 0 where it does not fit even with them."""

    draw: int
    train: int
    draw_saves: bool    # it fits only with memory savings
    train_saves: bool


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The list that comes with Atelier."""
    table = tomllib.loads((ASSETS / "known_models.toml").read_text(encoding="utf-8"))
    return tuple(KnownModel(**values) for values in table["model"])


def known_model(id: str) -> KnownModel | None:
    """The entry of a hub id; None where it is not in the list."""
    return next((known for known in known_models() if known.id == id), None)


def memory_needs(known: KnownModel) -> MemoryNeeds:
    """Count what drawing one picture and training with the usual preset need here; takes seconds the first time."""
    device, info = best_device(), _info(known)
    dtype = drawing_dtype(AUTO, device)
    draw = train = 0
    draw_saves = train_saves = False
    try:
        plan = plan_drawing(info, DrawRequest(), [], dtype, device)
        draw, draw_saves = plan.needed, plan.savings != DrawSavings()
    except BaseError:
        pass   # it does not fit
    try:
        preset = load_preset(next(iter(preset_names())), known.family)
        config = TrainConfig.from_dict({**preset, "base": known.id})
        precision = "fp32" if device.type == "cpu" else "bf16"
        forecast = forecast_memory(config, precision, device, info=info)
        assert forecast is not None
        train, train_saves = forecast.needed, forecast.config != config
    except BaseError:
        pass
    return MemoryNeeds(draw, train, draw_saves, train_saves)


def _info(known: KnownModel) -> BaseInfo:
    """What is known of a model before anything of it is here: all of a family have the same layers."""
    folder = MODELS / known.family
    unet, vae = (read_json(folder / part / "config.json", known.id) for part in ("unet", "vae"))
    return make_info(known.id, folder, FAMILIES[known.family], unet, vae, prediction_type="epsilon")


def downloadable_titles() -> dict[str, str]:
    """Known models as lists to choose from name them, id → title; those that are not here say so."""
    return {known.id: words.known_title(known.title, known.bytes if needs_download(known.id) else 0)
            for known in known_models()}   # fmt: skip
