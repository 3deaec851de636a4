"""Base models so small that a step takes milliseconds, and pictures to teach them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tiny_base import write_json, write_pictures, write_tiny_base

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load

# As old models have it: another scheduler's file, without prediction type and without a word about clipping.
OLD_SCHEDULE = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v-prediction base model with random weights: 32×32 pixels, 4×8×8 latents, 24 words."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    write_tiny_base(folder)
    return folder


@pytest.fixture
def variant(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of the tiny base model with other values in its configuration files; the weights are links."""

    def make(**changes: Mapping[str, Any]) -> Path:
        folder = tmp_path / "variant"
        for path in filter(Path.is_file, base.rglob("*")):
            copy = folder / path.relative_to(base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                copy.write_bytes(path.read_bytes())
            else:
                copy.symlink_to(path)
        for part, values in changes.items():
            (path,) = (folder / part).glob("*config.json")
            write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **values})
        return folder

    return make


@pytest.fixture(scope="session")
def epsilon_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model with the configuration of an old epsilon model and no words of its own."""
    folder = tmp_path_factory.mktemp("tiny") / "old"
    folder.mkdir()
    for path in base.iterdir():
        if path.name != "scheduler":
            (folder / path.name).symlink_to(path)
    write_json(folder / "scheduler" / "scheduler_config.json", OLD_SCHEDULE)
    return folder


@pytest.fixture(scope="session")
def model(base: Path) -> BaseModel:
    """The tiny base model, loaded. Tests leave it as it is."""
    return load(str(base), "cpu")


@pytest.fixture(scope="session")
def epsilon_model(epsilon_base: Path) -> BaseModel:
    """The tiny epsilon model, loaded. Tests leave it as it is."""
    return load(str(epsilon_base), "cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with nine small sharp pictures, no two alike."""
    folder = tmp_path / "pictures"
    write_pictures(folder)
    return folder


@pytest.fixture
def trained() -> Callable[..., AdapterSet]:
    """Make an adapter that changes a model, as if it had been trained."""

    def make(model: BaseModel, parts: tuple[str, ...] = ("unet",), seed: int = 0, size: float = 0.3) -> AdapterSet:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            specs = find_targets({name: model.models()[name] for name in parts}, "transformer")
            adapters = create_adapters("lora", {"rank": 2}, specs)
            for parameter in adapters.parameters():
                torch.nn.init.normal_(parameter, std=size)
        return adapters

    return make


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No connection leaves this process; what was tried is noted. Nobody has told the libraries to stay offline."""
    attempts: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        attempts.append(arguments)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return attempts
