"""Which form of an operation runs: its definition in plain torch, or its Triton twin."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

CHOICE = "ATELIER_KERNELS"
OPT_IN_TWINS = frozenset({"low_rank"})
"""Twins that have a library's fast path to beat, and no GPU has shown yet that they do: they run when asked for."""


def twin(name: str, tensor: Tensor) -> ModuleType | None:
    """The module of the twin of operation ``name`` where it is to work on ``tensor``; None: the definition is.

    Twins run on NVIDIA GPUs. The environment variable ATELIER_KERNELS forces one form for all: ``torch``, or
    ``triton``, which on other devices works in Triton's interpreter alone.

    Raises:
        ValueError: the variable says something else.
        ModuleNotFoundError: ``triton`` was asked for and is not installed.
    """
    asked = os.environ.get(CHOICE, "")
    if asked not in ("", "torch", "triton"):
        raise ValueError(f"{CHOICE} is {asked!r}, but it must be torch or triton. Unset it to choose by device.")
    by_device = tensor.device.type == "cuda" and name not in OPT_IN_TWINS and _available()
    return _module(name) if asked == "triton" or (not asked and by_device) else None


@cache
def _available() -> bool:
    return torch.version.cuda is not None and find_spec("triton") is not None


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"atelier.kernels.{name}_triton")
