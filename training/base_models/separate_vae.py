"""Another VAE than a base model's own: a single safetensors file, or a folder as diffusers writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from atelier.adapters.core.parse import parse_path
from atelier.adapters.formats.safetensors_header import HeaderError, TensorEntry, read_safetensors_header
from atelier.training.base_models.base_info import BaseError, read_json

_FILE = "diffusion_pytorch_model.safetensors"
# The decoder's first layer [channels of the last block, latent channels, 3, 3], bare and inside a full checkpoint.
_FIRST = ("decoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight")
_CURE = "Choose a VAE that was made for this family of base models."


def check_separate_vae(vae: str, own: Mapping[str, Any]) -> Path | None:
    """The file or folder of a separate VAE; None where none was chosen.

    Args:
        vae: what the person gave; empty for none.
        own: the configuration of the base model's own VAE, whose latents the UNet reads.

    Raises:
        BaseError: it is no VAE, or its latents are not those that the UNet reads.
    """
    if not vae:
        return None
    path = parse_path(vae)
    if path.is_dir():
        path = path / "vae" if (path / "vae" / "config.json").exists() else path
        _check_scale(vae, _configuration(vae, path / "config.json"), own)
    elif not path.is_file():
        raise BaseError(f"{vae} does not exist. A VAE is a .safetensors file or a diffusers folder with config.json.")
    tensors = _tensors(vae, path / _FILE if path.is_dir() else path)
    first = next((tensors[name].shape for name in _FIRST if name in tensors), None)
    if first is None or len(first) != 4:
        raise BaseError(f"{vae} is not a VAE of Stable Diffusion. Choose another file, such as sdxl_vae.safetensors.")
    _check_latents(vae, first, own)
    return path


def _configuration(vae: str, path: Path) -> dict[str, Any]:
    try:
        return read_json(path, vae, "latent_channels", "block_out_channels")
    except BaseError:
        raise BaseError(f"{vae} is not a VAE: its config.json is missing, or is that of something else. Choose a "
                        ".safetensors file, or a folder that diffusers wrote.") from None


def _tensors(vae: str, file: Path) -> Mapping[str, TensorEntry]:
    try:
        return read_safetensors_header(file).tensors
    except HeaderError as error:
        raise BaseError(f"{vae} can't be used as a VAE: {file.name} {error}") from None
    except OSError:
        raise BaseError(f"{vae} has no {_FILE}, the weights of the VAE. Download it again.") from None


def _check_latents(vae: str, first: tuple[int, ...], own: Mapping[str, Any]) -> None:
    if first[1] != own["latent_channels"]:
        raise BaseError(f"{vae} makes latents of {first[1]} channels, but this base model has latents of "
                        f"{own['latent_channels']}. {_CURE}")
    if first[0] != own["block_out_channels"][-1]:
        raise BaseError(f"{vae} has {first[0]} channels in its first layer, but the VAE of this base model has "
                        f"{own['block_out_channels'][-1]}. {_CURE}")


def _check_scale(vae: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    blocks, needed = (len(config["block_out_channels"]) for config in (given, own))
    if blocks != needed:
        raise BaseError(f"{vae} makes latents {2 ** (blocks - 1)} times smaller than the picture, but this base model "
                        f"has latents {2 ** (needed - 1)} times smaller. {_CURE}")
    scales = [config.get("scaling_factor", 0.18215) for config in (given, own)]
    if given.get("latents_mean") is not None or abs(scales[0] - scales[1]) > 1e-6:
        raise BaseError(f"{vae} scales its latents by {scales[0]}, but this base model reads latents scaled by "
                        f"{scales[1]}. {_CURE}")


def load_separate_vae(path: Path, own: Path) -> Any:
    """Load a checked VAE in float32 on the CPU; a single file has the configuration of ``own``, the base's VAE folder.

    Raises:
        ValueError: weights are missing.
    """
    from diffusers import AutoencoderKL

    if path.is_dir():
        loaded: Any = AutoencoderKL.from_pretrained(path, local_files_only=True, use_safetensors=True,
                                                    output_loading_info=True, torch_dtype=torch.float32)  # fmt: skip
        vae, report = loaded
        missing = sorted(report["missing_keys"])
    else:
        vae = AutoencoderKL.from_single_file(str(path), config=str(own), local_files_only=True,
                                             torch_dtype=torch.float32)   # fmt: skip
        missing = [name for name, value in vae.named_parameters() if value.is_meta]
    if missing:
        raise ValueError(f"{len(missing)} weights of the VAE {path.name} are missing, such as {missing[0]}")
    return vae
