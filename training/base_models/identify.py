"""What is this base model? Read from headers and configuration files, in milliseconds, without loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from atelier.adapters.formats.safetensors_header import HeaderError, read_safetensors_header
from atelier.adapters.quantization.packed import read_packed_contents
from atelier.training.base_models.base_info import (
    PACKED_UNET,
    BaseError,
    BaseInfo,
    check_inputs,
    family_of,
    make_info,
    precision_of,
    read_json,
)
from atelier.training.base_models.check_config import check_configurations
from atelier.training.base_models.single_file import identify_file
from atelier.training.config.assets import ASSETS
from atelier.training.config.train_config import EMBEDDED

EMBEDDED_FOLDER = ASSETS / "base"
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_UNET_ENTRIES = ("cross_attention_dim", "in_channels", "sample_size", "block_out_channels")
_VAE_ENTRIES = ("latent_channels", "block_out_channels")


def identify(base: str) -> BaseInfo:
    """Say what a base model is: 'embedded', a diffusers folder, a single ``.safetensors`` file, or a hub id.

    Raises:
        BaseError: not a base model, or one that Atelier can't use; with the reason and the cure.
    """
    if base == EMBEDDED:
        return identify_folder(base, EMBEDDED_FOLDER)
    path = Path(base).expanduser()
    if path.is_dir():
        return identify_folder(base, path)
    if path.is_file():
        return identify_file(base, path)
    if base.count("/") == 1 and not base.startswith((".", "/", "~")) and path.suffix not in _FILES:
        return identify_folder(base, hub_folder(base, weights=False))
    raise BaseError(f"{base} does not exist. A base model is 'embedded', a diffusers folder, a .safetensors file, or a "
                    "hub id such as 'owner/model'.")


def hub_folder(base: str, *, weights: bool) -> Path:
    """Fetch a hub model into the usual cache: its configurations, and with ``weights`` its safetensors too.

    Obeys HF_HOME, HF_HUB_OFFLINE and HF_TOKEN as every Hugging Face program does.

    Raises:
        BaseError: it can't be fetched and is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.txt", "*/*.json", "*/*.txt", *(["*/*model*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(base, allow_patterns=wanted))
    except (HFValidationError, OSError) as error:   # its errors of network, access and cache are all OSErrors
        reason = str(error).splitlines()[0]
        raise BaseError(f"{base} is not a folder or file here, and it could not be downloaded from the hub ({reason}). "
                        "Check the spelling, the network, and HF_TOKEN for gated models.") from None


def identify_folder(base: str, folder: Path) -> BaseInfo:
    """Say what a diffusers folder holds; ``base`` is what the person called it.

    Raises:
        BaseError: see :func:`identify`.
    """
    index = read_json(folder / "model_index.json", base)
    if index.get("_class_name") not in _PIPELINES:
        raise BaseError(f"{base} is a {index.get('_class_name')}, which is not supported. Atelier works with Stable "
                        "Diffusion 1.x, 2.x and XL.")
    check_configurations(base, folder)
    unet = read_json(folder / "unet" / "config.json", base, *_UNET_ENTRIES)
    vae = read_json(folder / "vae" / "config.json", base, *_VAE_ENTRIES)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", base)
    check_inputs(base, unet["in_channels"], vae["latent_channels"])
    family = family_of(base, unet["cross_attention_dim"])
    _check_encoders(base, folder, index, unet["cross_attention_dim"])
    return make_info(
        base, folder, family, unet, vae,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        precision=_precision(folder),
        bytes=sum(path.stat().st_size for path in folder.glob("*/*.safetensors")),
        zero_snr=bool(scheduler.get("rescale_betas_zero_snr")),
    )   # fmt: skip


def _check_encoders(base: str, folder: Path, index: Mapping[str, Any], width: int) -> None:
    """The text encoders' features, side by side, are what the cross-attention reads."""
    names = [name for name in ("text_encoder", "text_encoder_2") if name in index]
    configurations = [read_json(folder / name / "config.json", base) for name in names]
    widths = [values.get("hidden_size", 0) for values in configurations]
    if sum(widths) != width:
        raise BaseError(f"{base} has a text encoder of width {' + '.join(map(str, widths)) or 0}, but its UNet reads "
                        f"text features of width {width}. Its parts come from different models: download it again.")


def _precision(folder: Path) -> str:
    for path in sorted((folder / "unet").glob("*.safetensors")):
        with suppress(HeaderError, ValueError):
            if path.name == PACKED_UNET:
                return read_packed_contents(path).preset
            return precision_of(read_safetensors_header(path).tensors.values())
    return ""
