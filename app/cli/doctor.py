"""``atelier doctor``: what this machine has, what Atelier will use of it, and what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch

from atelier.app.jobs.jobs import worker_alive
from atelier.app.services.check_home import Finding, check_home
from atelier.app.store.home import HomeError, open_home
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.device import best_device, card_problem, has_own_memory, kernels_in_use
from atelier.training.base_models.device import memory as device_memory
from atelier.training.base_models.identify import identify
from atelier.training.base_models.precision import choose_precision
from atelier.training.config.train_config import EMBEDDED

MIN_DISK_BYTES = 2_000_000_000   # for checkpoints and previews of a run on a large base model
MIN_MEMORY_BYTES = 1_000_000_000


def examine(home: Path | None, *, repair: bool = False) -> dict[str, Any]:
    """Check everything that a run needs, and every file of the home.

    ``problems`` has a sentence with a cure for each thing that is wrong, and with ``repair`` for each that could not be
    repaired; ``repairs`` has one for each thing that was done.
    """
    problems: list[str] = []
    repairs: list[str] = []
    device = best_device()
    memory = psutil.virtual_memory()
    if memory.available < MIN_MEMORY_BYTES:
        problems.append("Little memory is free. Close other programs before you train.")
    if card := card_problem():
        problems.append(card)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        **_gpu(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        **_home(home, problems, repairs, repair=repair),
        **_base(device, problems),
        "problems": problems,
        "repairs": repairs,
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    if not has_own_memory(device):
        return {}
    free, total = device_memory(device)
    return {"device_name": torch.get_device_module(device).get_device_name(device), "device_memory_bytes": total,
            "device_memory_free_bytes": free, "kernels": kernels_in_use(device)}   # fmt: skip


def _home(path: Path | None, problems: list[str], repairs: list[str], *, repair: bool) -> dict[str, Any]:
    try:
        home = open_home(path)
    except HomeError as error:
        problems.append(str(error))
        return {}
    free = shutil.disk_usage(home.path).free
    if free < MIN_DISK_BYTES:
        problems.append(f"The disk with {home.path} is nearly full. Free some space before you train.")
    for finding in check_home(home):
        if repair and finding.repair:
            repairs.append(_repair(finding, problems))
        else:
            problems.append(finding.problem)
    worker = "running" if worker_alive(home) else "not running"
    return {"home": str(home.path), "disk_free_bytes": free, "worker": worker}


def _repair(finding: Finding, problems: list[str]) -> str:
    """What was found, and what was done about it; where that fails, it is one more problem."""
    assert finding.repair
    try:
        return f"{finding.problem} {finding.repair()}"
    except HomeError as error:
        problems.append(str(error))
        return f"{finding.problem} It could not be repaired."


def _base(device: torch.device, problems: list[str]) -> dict[str, Any]:
    try:
        info = identify(EMBEDDED)
    except BaseError as error:
        problems.append(str(error))
        return {}
    precision = choose_precision(device, info.channels, info.resolution // info.vae_scale_factor)
    return {"precision": precision, "base": info.title, "base_resolution": info.resolution}
