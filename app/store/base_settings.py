"""What a person set for single base models: what they predict and a separate VAE, for everything done with them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, absolute_base, write_home_file
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import AUTO_PREDICTION, PLAIN_BASE, PREDICTIONS, BaseOptions
from atelier.training.config.train_config import TrainConfig


def base_options(home: Home, base: str) -> BaseOptions:
    """What was set for a base model; nothing where its settings can't be read."""
    values = _read(home).get(base)
    if not isinstance(values, dict):
        return PLAIN_BASE
    prediction, vae = values.get("prediction"), values.get("vae")
    known = prediction if prediction in PREDICTIONS else AUTO_PREDICTION
    return BaseOptions(known, vae if isinstance(vae, str) else "")


def save_base_options(home: Home, base: str, options: BaseOptions) -> BaseInfo:
    """Set how a base model is loaded from now on; returns what it then is.

    Raises:
        BaseError: the base model or the VAE can't be used.
        HomeError: the home can't be written.
    """
    info = identify(base, options)
    values = {name: value for name, value in _read(home).items() if name != base}
    if options != PLAIN_BASE:
        values[base] = asdict(options)
    write_home_file(home.base_settings, json.dumps(values, indent=1).encode())
    return info


def _read(home: Home) -> dict[str, object]:
    try:
        values = parse_json(home.base_settings.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def with_base_settings(home: Home, config: TrainConfig) -> TrainConfig:
    """A run with what was set for its base model, where the run itself says nothing."""
    options = config.base_options.or_else(base_options(home, config.base))
    return replace(config, prediction=options.prediction, vae=absolute_base(options.vae))
