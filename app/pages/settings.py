"""Settings: where things are, what draws them, how much room they take, and what Atelier stands on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
import torch

from atelier.training.base_model import best_device, identify
from atelier.training.config import EMBEDDED

from .. import words
from ..engine import Engine
from ..frame import POLL, heading
from ..home import Home
from ..jobs import worker_alive
from ..panel import panel

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "gradio", "huey")
_FACTS = """<div class="groups">{{#each value}}<section class="sheet"><h2>{{this.title}}</h2>
{{#if this.hint}}<p class="hint">{{this.hint}}</p>{{/if}}<dl class="facts">{{#each this.facts}}<dt>{{this.name}}</dt><dd>{{this.value}}</dd>{{/each}}</dl></section>{{/each}}</div>"""


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the page."""
    heading(words.SETTINGS_TITLE, words.SETTINGS_LEAD)
    facts = panel(_FACTS, [], elem_id="facts")
    demo.load(lambda: _groups(home, engine), None, facts, **POLL)


def _groups(home: Home, engine: Engine) -> list[dict[str, Any]]:
    base = engine.loaded.info if engine.loaded else identify(EMBEDDED)
    used = {words.FOLDERS[name]: words.size(_bytes(getattr(home, name))) for name in words.FOLDERS}
    return [
        _group(words.HOME, {words.FOLDER: str(home.path), **used, words.FREE: words.size(psutil.disk_usage(str(home.path)).free)},
               words.HOME_HINT),
        _group(words.MACHINE, {words.DEVICE: device_name(), words.MEMORY: words.size(psutil.virtual_memory().total),
                               words.WORKER: words.YES if worker_alive(home) else words.NO_WORKER,
                               words.SYSTEM: f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"}),
        _group(words.BASE, {words.NAME: base.title, words.FAMILY: base.family, words.SIZE: f"{base.resolution} × {base.resolution}",
                            words.PREDICTION: base.prediction_type,
                            words.IN_MEMORY: words.YES if engine.loaded else words.NOT_YET}),
        _group(words.VERSIONS, {"Atelier": _version("atelier-diffusion"), **{name: _version(name) for name in PACKAGES}}),
        _group(words.ABOUT, words.LICENCES, words.ABOUT_HINT),
    ]   # fmt: skip


def _group(title: str, facts: dict[str, str], hint: str = "") -> dict[str, Any]:
    return {"title": title, "hint": hint, "facts": [{"name": name, "value": value} for name, value in facts.items()]}


def device_name() -> str:
    """The device that draws and trains, as a person knows it."""
    device = best_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return words.processor(os.cpu_count() or 1) if device.type == "cpu" else device.type.upper()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return words.FROM_SOURCE


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
