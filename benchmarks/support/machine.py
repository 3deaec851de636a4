"""The machine, versions and date that every published figure carries."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version

import torch

PACKAGES = ("torch", "diffusers", "transformers", "peft")


def describe_machine() -> dict[str, str]:
    """What the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def in_words(facts: Mapping[str, str]) -> str:
    """The same as a line of a document."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = torch.backends.cpu.get_cpu_capability()
    return f"{cores}-core {platform.machine()} CPU ({features})"
