"""Which form of an operation runs: its definition in plain torch, or its Triton twin."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

CHOICE = "ATELIER_KERNELS"
OPT_IN_TWINS = frozenset({"low_rank"})
"""Twins that have a library's fast path to beat, and no GPU has shown yet that they do: they run when asked for."""


def twin(name: str, tensor: Tensor) -> ModuleType | None:
    """The module of the twin of operation ``name`` where it is to work on ``tensor``; None: the definition is.

    A twin runs on an NVIDIA GPU where it was compared with its definition before (``make gpu``) and where Triton can
    compile. The environment variable ATELIER_KERNELS forces one form for all: ``torch``, or ``triton``, which on other
    devices works in Triton's interpreter alone.

    Raises:
        ValueError: the variable says something else.
        ModuleNotFoundError: ``triton`` was asked for and is not installed.
    """
    asked = os.environ.get(CHOICE, "")
    if asked not in ("", "torch", "triton"):
        raise ValueError(f"{CHOICE} is {asked!r}, but it must be torch or triton. Unset it to choose by device.")
    by_device = tensor.device.type == "cuda" and name not in OPT_IN_TWINS and not twin_obstacle(name, tensor.device)
    return _module(name) if asked == "triton" or (not asked and by_device) else None


@cache
def twin_obstacle(name: str, device: torch.device) -> str:
    """Why the twin of an operation does not run on an NVIDIA GPU, in words; empty where it does. Tried once."""
    if torch.version.cuda is None or find_spec("triton") is None:
        return "Triton is not installed"
    if name not in verified_twins(device):
        return "it was not compared with its definition on this card: run make gpu"
    return _compile_error(device)


@cache
def _compile_error(device: torch.device) -> str:
    try:
        import_module("atelier.kernels.probe_triton").probe(device)
    except Exception as error:   # Triton passes on what its compilers raise, and they raise what they like
        return f"Triton can't compile here ({(str(error) or type(error).__name__).strip().splitlines()[0]})"
    return ""


def verified_twins(device: torch.device) -> list[str]:
    """The operations whose twins gave what their definitions give, on this card with these libraries."""
    with suppress(OSError, ValueError, AttributeError):
        return list(json.loads(_record().read_text(encoding="utf-8")).get(_machine(device), []))
    return []


def record_verified(device: torch.device, names: Collection[str]) -> None:
    """Remember that these twins may run on a card."""
    path, known = _record(), {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**known, _machine(device): sorted(names)}), encoding="utf-8")


def _record() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atelier" / "verified-kernels.json"


def _machine(device: torch.device) -> str:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "?"
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, triton {triton}"


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"atelier.kernels.{name}_triton")
