"""A file for people who help with a problem: what the machine is and what happened, and nothing that is private.

Only what is listed here goes in: numbers, choices among words of ours, and names of our own code. Names, prompts,
captions, trigger words, paths, pictures and keys are texts that somebody typed; no such text is copied.
"""

from __future__ import annotations

import json
import platform
import re
import zipfile
from collections import Counter
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from atelier.adapters.core.family import FAMILIES
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.jobs.jobs import list_runs, run_folders, worker_alive
from atelier.app.services.settings.storage import list_storage
from atelier.app.store.home import Home, explain_write_errors
from atelier.app.store.library import list_adapters
from atelier.app.store.preferences import drawing_device, drawing_precision
from atelier.training.base_models.device import best_device, card_problem, device_named, has_own_memory
from atelier.training.config.run_folder import RunFolder

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "gradio", "huey", "numpy", "pillow")
_ROOMS = Path(__file__).resolve().parents[3]
_FRAME = re.compile(r'File "[^"]*[/\\]((?:app|training|adapters|kernels)[/\\][\w/\\]+\.py)", line (\d+)')
_ERROR = re.compile(r"^([A-Z]\w*(?:Error|Exception|Interrupt))\b", re.MULTILINE)
_LOG_BYTES = 200_000


def write_diagnostics(home: Home, path: Path) -> Path:
    """Write the file, a ZIP of JSON texts; returns its path.

    Raises:
        HomeError: it can't be written.
    """
    parts = {"machine.json": _machine(home), "home.json": _home(home), "jobs.json": _jobs(home),
             "errors.json": _errors(home)}   # fmt: skip
    with explain_write_errors(path), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, values in parts.items():
            file.writestr(name, json.dumps(values, indent=1))
    return path


def _machine(home: Home) -> dict[str, Any]:
    device, memory = best_device(), psutil.virtual_memory()
    name = torch.get_device_module(device).get_device_name(device) if has_own_memory(device) else ""
    return {
        "system": platform.system(), "machine": platform.machine(), "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES}, "device": device.type, "device_name": name,
        "card_is_unused": bool(card_problem()), "cores": psutil.cpu_count(), "memory": memory.total,
        "memory_free": memory.available, "disk_free": psutil.disk_usage(str(home.path)).free,
        "precision": drawing_precision(home),
        "drawing_device": str(device_named(drawing_device(home))), "worker": worker_alive(home),
        "shared_queue": bool(home.queue),
    }   # fmt: skip


def _home(home: Home) -> dict[str, Any]:
    cards = list_adapters(home)
    return {
        "bytes": {entry.kind: entry.bytes for entry in list_storage(home)},
        "adapters_by_kind": Counter(card.kind if card.kind in KINDS else "other" for card in cards),
        "adapters_by_family": Counter(card.family if card.family in FAMILIES else "other" for card in cards),
    }   # fmt: skip


def _jobs(home: Home) -> list[dict[str, Any]]:
    """States and numbers of each job, under a number in place of its name."""
    states = {run.id: run for run in list_runs(home)}
    found = []
    for number, folder in enumerate(map(RunFolder, run_folders(home)), start=1):
        run = states.get(folder.id)
        if run is None:
            continue
        found.append({"job": number, "state": run.state, "step": run.step, "total_steps": run.total_steps,
                      "seconds": run.seconds, "compression": run.compression, "losses": run.losses[-20:],
                      "settings": _settings(folder)})   # fmt: skip
    return found


def _settings(run: RunFolder) -> dict[str, Any]:
    """A training's settings without any text that a person may have typed."""
    try:
        config = run.config()
    except (OSError, ValueError, TypeError):
        return {}
    given = {f.name: (getattr(config, f.name), f.metadata.get("choices") or ()) for f in fields(config)}
    return {name: value for name, (value, choices) in given.items()
            if isinstance(value, bool | int | float) or value in choices}   # fmt: skip


def _errors(home: Home) -> list[dict[str, Any]]:
    """Kinds of errors in the logs, with the lines of our code that they passed through; no messages."""
    logs = [*home.state.glob("*.log"), *home.runs.glob("*/log.txt"), *home.grids.glob("*/log.txt")]
    found = []
    for path in sorted(logs):
        text = _end_of(path)
        kinds = _ERROR.findall(text)
        frames = [":".join(each) for each in _FRAME.findall(text) if (_ROOMS / each[0]).is_file()]
        if kinds or frames:
            found.append({"kinds": Counter(kind for kind in kinds if _is_known_error(kind)), "frames": frames[-30:]})
    return found


def _is_known_error(name: str) -> bool:
    """An error of Python, torch or ours: a text that merely looks like one is left out."""
    return any(cls.__name__ == name for cls in _subclasses(BaseException))


def _subclasses(cls: type) -> set[type]:
    own = set(cls.__subclasses__())
    return own | {each for sub in own for each in _subclasses(sub)}


def _end_of(path: Path) -> str:
    try:
        return path.read_bytes()[-_LOG_BYTES:].decode("utf-8", "replace")
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
