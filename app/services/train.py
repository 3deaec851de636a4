"""Start a training from settings and pictures, as a script asks for it: the preset, what differs from it, and a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from atelier.app.jobs.jobs import submit
from atelier.app.store.base_settings import base_options
from atelier.app.store.datasets import import_pictures
from atelier.app.store.home import Home, HomeError, absolute_base, new_name
from atelier.training.base_models.hub import require_download
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import AUTO_PREDICTION, BaseOptions
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import EMBEDDED, TrainConfig, load_preset, picture_weights, weights_text
from atelier.training.recipes.companions import with_style_caption


def start_training(
    home: Home, name: str, pictures: Sequence[Path], preset: str, settings: Mapping[str, Any], *, style: bool = False
) -> tuple[RunFolder, list[str]]:
    """Copy the pictures into a dataset and put a training into the queue.

    Args:
        home: where both go.
        name: of the new adapter.
        pictures: files; text files beside them are captions.
        preset: whose settings count where none are given.
        settings: fields of :class:`TrainConfig`.
        style: whether a way of drawing is trained, and no subject.

    Returns:
        The run, and sentences on pictures that can't be used or should not be.

    Raises:
        HomeError, BaseError, SettingError, PictureError: something given can't be used; no run was made.
    """
    config, notes = prepare_training(home, name, pictures, preset, settings, style=style)
    return submit(home, config), notes


def prepare_training(
    home: Home, name: str, pictures: Sequence[Path], preset: str, settings: Mapping[str, Any], *, style: bool = False
) -> tuple[TrainConfig, list[str]]:
    """The same without a run: copies the pictures into a dataset; returns the configuration that names it.

    Raises:
        HomeError, BaseError, SettingError, PictureError: something given can't be used.
    """
    if not pictures:
        raise HomeError("There are no pictures to train on. Give at least one.")
    config = _config(home, new_name(home, name), preset, settings)
    config = with_style_caption(config) if style else config
    imported = import_pictures(home, config.name, pictures, trigger=config.trigger_word)
    weights = weights_text(imported.weights | picture_weights(config.weights))
    config = replace(config, pictures=str(imported.folder), weights=weights)
    return config, [*(reason for _, reason in imported.refused), *imported.warnings]


def _config(home: Home, name: str, preset: str, settings: Mapping[str, Any]) -> TrainConfig:
    base = absolute_base(str(settings.get("base") or EMBEDDED))
    require_download(base)   # before anything asks the network
    given = BaseOptions(str(settings.get("prediction") or AUTO_PREDICTION), absolute_base(str(settings.get("vae", ""))))
    options = given.or_else(base_options(home, base))
    usual = load_preset(preset, identify(base, options).family, str(settings.get("kind", "")))
    return TrainConfig.from_dict({**usual, **settings, **asdict(options), "name": name, "base": base})
