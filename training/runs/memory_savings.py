"""Does a run fit into the memory here, and what can it do to need less? Counted where it is not plain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch

from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs.memory_estimate import PROGRAM_BYTES, need

RESERVE = 0.05                # of the device, for what fragments and for the desktop
PER_MODEL, PER_PICTURE = 8, 2   # more than any run needs, in sizes of the base on disk: about 4 times what was counted


def available(device: torch.device) -> int:
    """Bytes that a run may use on a device now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free - RESERVE * total)
    memory = psutil.virtual_memory()
    return int(memory.available - RESERVE * memory.total)


def cheaper(config: TrainConfig) -> TrainConfig | None:
    """The same run with less memory and more time: the next lever, or None when there is none left.

    Checkpointing computes the UNet's blocks a second time instead of keeping what is in them. Half the batch, taken
    twice as often, gives the same mean gradient. Weights in 8 bits come last, because they alone change the result.
    """
    if not config.gradient_checkpointing:
        return replace(config, gradient_checkpointing=True)
    if config.batch > 1:
        return replace(config, batch=config.batch // 2, accumulate=config.accumulate * 2)
    if not config.base_in_8_bits and not config.needs_whole_base:
        return replace(config, base_in_8_bits=True)
    return None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run needs of the memory here, and how it gets along with it."""

    chosen: TrainConfig   # the run with as many levers as it takes
    needed: int           # bytes the run takes without them
    room: int             # bytes that are free
    counted: bool         # else ``needed`` is a bound that the run stays far below


def forecast(
    config: TrainConfig, precision: str, device: torch.device, processes: int = 1, *, quickly: bool = False
) -> Forecast | None:
    """Say what a run needs, and which levers make it fit.

    Args:
        config: the run.
        precision: of UNet and text encoders.
        device: what it runs on.
        processes: how many share each batch.
        quickly: return None rather than spend seconds on counting.

    Raises:
        BaseError: it does not fit even with all levers; says what is needed and what there is.
    """
    room, info = available(device), identify(config.base)
    pictures = (config.batch + config.prior_batch) * max(1.0, config.resolution / info.resolution) ** 2
    bound = int(PROGRAM_BYTES + info.bytes * (PER_MODEL + PER_PICTURE * pictures)) * processes
    if info.bytes and bound < room:   # a hub model that is not here yet has no bytes
        return Forecast(config, bound, room, counted=False)
    if quickly:
        return None
    chosen: TrainConfig | None = config
    peak = first = _peak(config, precision, device, processes)
    while chosen is not None and peak > room:
        chosen = cheaper(chosen)
        peak = _peak(chosen, precision, device, processes) if chosen else peak
    if chosen is None:
        raise BaseError(f"Training this base model needs about {peak / 1e9:.1f} GB of memory even with every memory "
                        f"saving, but only {room / 1e9:.1f} GB is free. Close other programs, or choose a smaller "
                        "resolution or base model.")
    return Forecast(chosen, first, room, counted=True)


def fitting(
    config: TrainConfig, precision: str, device: torch.device, processes: int = 1
) -> tuple[TrainConfig, str]:
    """The run itself where it fits; else with as many levers as it takes, and what to tell about them.

    Raises:
        BaseError: see :func:`forecast`.
    """
    found = forecast(config, precision, device, processes)
    if found is None or found.chosen == config:
        return config, ""
    return found.chosen, (f"This run needs about {found.needed / 1e9:.1f} GB of memory, but only "
                          f"{found.room / 1e9:.1f} GB is free. To fit, {levers(config, found.chosen)}.")


def shortage(config: TrainConfig, precision: str, device: torch.device) -> str:
    """What a run needed that ran out of memory, and what is free now."""
    return (f"Out of memory: this run needs about {_peak(config, precision, device) / 1e9:.1f} GB, but only "
            f"{available(device) / 1e9:.1f} GB is free.")


def _peak(config: TrainConfig, precision: str, device: torch.device, processes: int = 1) -> int:
    """Bytes of one device; the main memory is one for all processes."""
    shared = device.type != "cuda"
    return need(config, precision, device=device.type, processes=processes).peak * (processes if shared else 1)


def levers(config: TrainConfig, chosen: TrainConfig) -> str:
    """What one run does to need less memory than another, in words."""
    said = []
    if chosen.gradient_checkpointing and not config.gradient_checkpointing:
        said.append("activations are recomputed instead of stored, which takes about a third longer")
    if chosen.batch < config.batch:
        said.append(f"the batch size is {chosen.batch} instead of {config.batch}, with more accumulation")
    if chosen.base_in_8_bits and not config.base_in_8_bits:
        said.append("the base model's weights are stored in 8 bits, which is a little less exact")
    return "; ".join(said)
