"""Does a run fit into the memory here, and which savings make it fit? Counted exactly only where that is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from atelier.adapters.core.byte_size import format_bytes
from atelier.training.base_models.base_info import BaseError, BaseInfo
from atelier.training.base_models.device import available_memory, has_own_memory
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.cuda_graph import is_repeatable
from atelier.training.runs.memory_estimate import PROGRAM_BYTES, estimate_memory

PER_MODEL, PER_PICTURE = 8, 2   # more than any run needs, in sizes of the base on disk: about 4 times what was counted


def next_saving(config: TrainConfig, device: torch.device | None = None) -> TrainConfig | None:
    """The same run with one more saving, which needs less memory and more time; None when there is none left.

    Recorded steps keep their activations. Checkpointing computes the UNet's blocks a second time instead of keeping
    theirs. Half the batch, accumulated twice as often, gives the same mean gradient. Weights in 8 bits come last: they
    alone change the result.
    """
    if device is not None and device.type == "cuda" and is_repeatable(config):
        return replace(config, record="off")
    if not config.gradient_checkpointing:
        return replace(config, gradient_checkpointing=True)
    if config.batch > 1:
        return replace(config, batch=config.batch // 2, accumulate=config.accumulate * 2)
    if not config.base_in_8_bits and not config.needs_whole_base:
        return replace(config, base_in_8_bits=True)
    return None


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """What a run needs of the memory here, and the savings that make it fit."""

    config: TrainConfig   # the run with as many savings as it takes
    needed: int           # bytes the run takes without savings
    available: int        # bytes
    exact: bool           # False: ``needed`` is an upper bound that the run stays far below


def forecast_memory(
    config: TrainConfig, precision: str, device: torch.device, processes: int = 1, *, quickly: bool = False,
    info: BaseInfo | None = None,
) -> MemoryForecast | None:   # fmt: skip
    """Forecast what a run needs, and which savings make it fit.

    Args:
        config: the run.
        precision: of UNet and text encoders.
        device: what it runs on.
        processes: how many share each batch.
        quickly: return None rather than spend seconds on counting.
        info: what is known of a base model that is not here yet.

    Raises:
        BaseError: it does not fit even with all savings; says what is needed and what is available.
    """
    available, info = available_memory(device), info or identify(config.base, config.base_options)
    pictures = (config.batch + config.prior_batch) * max(1.0, config.resolution / info.resolution) ** 2
    bound = int(PROGRAM_BYTES + info.bytes * (PER_MODEL + PER_PICTURE * pictures)) * processes
    if info.bytes and bound < available:   # a hub model that is not here yet has no bytes
        return MemoryForecast(config, bound, available, exact=False)
    if quickly:
        return None
    fitting: TrainConfig | None = config
    peak = needed = _peak(config, precision, device, processes, info)
    while fitting is not None and peak > available:
        fitting = next_saving(fitting, device)
        peak = _peak(fitting, precision, device, processes, info) if fitting else peak
    if fitting is None:
        raise BaseError(f"Training this base model needs about {format_bytes(peak)} of memory even with every memory "
                        f"saving, but only {format_bytes(available)} is free. Close other programs, or choose a "
                        "smaller resolution or base model.")
    return MemoryForecast(fitting, needed, available, exact=True)


def fit_to_memory(
    config: TrainConfig, precision: str, device: torch.device, processes: int = 1
) -> tuple[TrainConfig, str]:
    """The run itself where it fits; else with as many savings as it takes, and a warning that names them.

    Raises:
        BaseError: see :func:`forecast_memory`.
    """
    forecast = forecast_memory(config, precision, device, processes)
    if forecast is None or forecast.config == config:
        return config, ""
    return forecast.config, (
        f"This run needs about {format_bytes(forecast.needed)} of memory, but only {format_bytes(forecast.available)} "
        f"is free. To fit, {describe_savings(config, forecast.config)}."
    )


def memory_shortage(config: TrainConfig, precision: str, device: torch.device) -> str:
    """A sentence on what a run needed that ran out of memory, and what is free now."""
    needed, available = _peak(config, precision, device), available_memory(device)
    if needed <= available:
        return (f"Out of memory, although this run should need about {format_bytes(needed)} and "
                f"{format_bytes(available)} is free.")
    return f"Out of memory: this run needs about {format_bytes(needed)}, but only {format_bytes(available)} is free."


def _peak(
    config: TrainConfig, precision: str, device: torch.device, processes: int = 1, info: BaseInfo | None = None
) -> int:
    """Peak bytes on one device; all processes share the main memory."""
    peak = estimate_memory(config, precision, device=device.type, processes=processes, info=info).peak
    return peak if has_own_memory(device) else peak * processes


def describe_savings(config: TrainConfig, fitting: TrainConfig) -> str:
    """The savings of ``fitting`` over ``config``, in words."""
    savings = []
    if fitting.record != config.record:
        savings.append("steps are not recorded as CUDA graphs")
    if fitting.gradient_checkpointing and not config.gradient_checkpointing:
        savings.append("activations are recomputed instead of stored, which takes about a third longer")
    if fitting.batch < config.batch:
        savings.append(f"the batch size is {fitting.batch} instead of {config.batch}, with more accumulation")
    if fitting.base_in_8_bits and not config.base_in_8_bits:
        savings.append("the base model's weights are stored in 8 bits, which is a little less exact")
    return "; ".join(savings)
