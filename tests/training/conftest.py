"""Base models so small that a step takes milliseconds, and pictures to teach them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.identify import EMBEDDED_FOLDER

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}
SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}
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
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=192,
            attention_head_dim=8,
        ).save_pretrained(folder / "unet")
        AutoencoderKL(
            sample_size=32,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 8, 8),
            norm_num_groups=4,
            scaling_factor=0.7,
        ).save_pretrained(folder / "vae")
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=2248,
                hidden_size=192,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=24,
                bos_token_id=2246,
                eos_token_id=2247,
                pad_token_id=2247,
            )
        ).save_pretrained(folder / "text_encoder")
    CLIPTokenizer.from_pretrained(EMBEDDED_FOLDER / "tokenizer").save_pretrained(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULE)
    write_json(folder / "model_index.json", INDEX)
    return folder


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


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
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """These models are too small to share the work: on a busy machine the threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
