"""How much memory a run will need, as the Create page says it before training starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache

import torch

from atelier.app.text import create as words
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.device import best_device
from atelier.training.base_models.identify import identify
from atelier.training.base_models.precision import choose_precision
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs.memory_savings import MemoryForecast, describe_savings, forecast_memory

_COUNT_LOCK = threading.Lock()   # an estimate takes seconds of a core; two at once would take twice as long


def memory_lines(config: TrainConfig) -> Iterator[str]:
    """Yield what a run needs: one line where it fits easily, else first that it is being estimated.

    Raises:
        BaseError: the base model can't be used, or the run does not fit even with all savings.
    """
    device = best_device()
    precision = _precision(config, device)
    forecast = forecast_memory(config, precision, device, quickly=True)
    if forecast is None:
        yield words.ESTIMATING
        with _COUNT_LOCK:
            forecast = forecast_memory(config, precision, device)
    assert forecast is not None
    yield _line(config, forecast)


def _line(config: TrainConfig, forecast: MemoryForecast) -> str:
    warnings = identify(config.base, config.base_options).warnings
    return " ".join([_memory(config, forecast), *warnings])


def _memory(config: TrainConfig, forecast: MemoryForecast) -> str:
    needed, available = forecast.needed, forecast.available
    if forecast.config != config:
        return words.memory_saved(needed, available, describe_savings(config, forecast.config))
    return words.memory_needed(needed, available, exactly=forecast.exact)


def _precision(config: TrainConfig, device: torch.device) -> str:
    if config.precision != "auto":
        return config.precision
    return _fastest(device, identify(config.base, config.base_options))


@cache
def _fastest(device: torch.device, info: BaseInfo) -> str:
    return choose_precision(device, info.channels, info.resolution // info.vae_scale_factor)
