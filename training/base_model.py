"""What is this base model, and how is it loaded: the one room that knows.

Everything else asks here for widths, prediction type, resolution and captions, and hard-codes none of them.
"""

from __future__ import annotations

import json
import logging
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from .config import EMBEDDED

EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "base"
# The width of the text features the cross-attention reads tells the families apart.
_FAMILIES = {192: "embedded", 768: "sd1", 1024: "sd2"}
_UNET_ENTRIES = ("cross_attention_dim", "in_channels", "sample_size", "block_out_channels")
_VAE_ENTRIES = ("latent_channels", "block_out_channels")
_UNSAFE = (".ckpt", ".pt", ".pth", ".bin")


class BaseError(ValueError):
    """Something that can't be used as a base model; the message says what it is and the cure."""


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What a base model is, read from its small configuration files alone."""

    source: str            # what the person gave: 'embedded', a folder, a hub id
    title: str             # a name for pages
    family: str            # embedded, sd1, sd2
    prediction_type: str   # epsilon, v_prediction
    resolution: int        # picture side in pixels it was made for
    factor: int            # picture pixels per latent pixel
    multiple: int          # picture sides must be multiples of this
    channels: int          # width of the UNet's first block
    folder: Path
    caption: str           # caption template with {trigger} and {subject}
    prior_prompts: tuple[str, ...] = ()   # varied things it can draw, for prior preservation


def identify(base: str) -> BaseInfo:
    """Say what a base model is, in milliseconds, without loading weights.

    Raises:
        BaseError: not a base model, or one that Atelier can't use; with the reason and the cure.
    """
    folder = _folder(base)
    index = _read_json(folder / "model_index.json", base)
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise BaseError(f"{base} holds a {index.get('_class_name')}; Atelier needs a StableDiffusionPipeline.")
    unet = _read_json(folder / "unet" / "config.json", base, *_UNET_ENTRIES)
    vae = _read_json(folder / "vae" / "config.json", base, *_VAE_ENTRIES)
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json", base)
    width = unet["cross_attention_dim"]
    family = _FAMILIES.get(width) if isinstance(width, int) else None
    if family is None:
        raise BaseError(f"{base} reads text features of width {width}, which fits no family that Atelier knows.")
    if unet["in_channels"] != vae["latent_channels"]:
        raise BaseError(f"{base} is an inpainting or depth model ({unet['in_channels']} input channels); "
                        f"use the plain text-to-image model of the same family.")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    words = _words(folder)
    return BaseInfo(
        source=base,
        title="Atelier's own small model" if base == EMBEDDED else Path(base).name,
        family=family,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        resolution=unet["sample_size"] * factor,
        factor=factor,
        multiple=factor * 2 ** (len(unet["block_out_channels"]) - 1),
        channels=unet["block_out_channels"][0],
        folder=folder,
        caption=words.get("caption", "a photo of {subject}").replace("{subject}", "{trigger} {subject}"),
        prior_prompts=tuple(words.get("prior_prompts", ())),
    )


def _folder(base: str) -> Path:
    if base == EMBEDDED:
        return EMBEDDED_FOLDER
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        why = "can run code when opened" if path.suffix in _UNSAFE else "single files are not supported yet"
        raise BaseError(f"{base} is a file, and {why}. Give a diffusers folder: one with model_index.json in it.")
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        return _hub_folder(base)
    raise BaseError(f"{base} does not exist. Give 'embedded', a diffusers folder, or a hub id such as 'owner/model'.")


def _hub_folder(base: str) -> Path:
    """Fetch a hub model into the usual cache, safetensors and configurations only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*model*.safetensors"]
    try:
        return Path(snapshot_download(base, allow_patterns=wanted))
    except (HFValidationError, OSError) as error:   # its errors of network, access and cache are all OSErrors
        reason = str(error).splitlines()[0]
        raise BaseError(f"{base} is neither a folder here nor a model that could be fetched from the hub "
                        f"({reason}). Check the spelling, the network, and HF_TOKEN for gated models.") from None


def _read_json(path: Path, base: str, *needed: str) -> dict[str, Any]:
    """Read a configuration file that has the ``needed`` entries."""
    with suppress(OSError, ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and all(name in values for name in needed):
            return values
    raise BaseError(
        f"{base} is not a base model: it has no readable {path.name} where a diffusers folder has one. "
        f"Such a folder holds model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/."
    )


def _words(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "prompts.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model. Its weights are frozen; adapters are mounted on it, never written into it."""

    info: BaseInfo
    unet: Any           # diffusers UNet2DConditionModel
    vae: Any            # diffusers AutoencoderKL
    text_encoder: Any   # transformers CLIPTextModel
    tokenizer: Any      # transformers CLIPTokenizer
    scheduler: Any      # diffusers noise scheduler

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return self.unet.dtype

    def models(self) -> dict[str, nn.Module]:
        """The parts adapters can change, by component name."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline over these same parts."""
        from diffusers import StableDiffusionPipeline as Pipeline

        make: Any = Pipeline   # its annotations don't know that the safety checker may be left out

        pipeline = make(
            vae=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet,
            scheduler=self.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )   # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load(base: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> BaseModel:
    """Load a base model, frozen, for training or drawing.

    Without ``device`` it goes to the best device here; without ``dtype`` it stays in float32 on a CPU and takes
    float16 on a GPU. The VAE stays in float32: SD's overflows in float16 on some pictures.

    Raises:
        BaseError: see :func:`identify`; also when weights are missing or don't fit their configuration.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils.logging import disable_progress_bar

    info = identify(base)   # whatever must be fetched is fetched here, with progress bars
    disable_progress_bar()
    place = torch.device(device) if device else best_device()
    kind = dtype or (torch.float32 if place.type == "cpu" else torch.float16)
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
    try:
        unet = _part(UNet2DConditionModel, info.folder / "unet", place, torch_dtype=kind)
        vae = _part(AutoencoderKL, info.folder / "vae", place, torch_dtype=torch.float32)
        text_encoder = _part(CLIPTextModel, info.folder / "text_encoder", place, dtype=kind)
        tokenizer = CLIPTokenizer.from_pretrained(info.folder / "tokenizer", local_files_only=True)
        # Some files do not mention clipping, and DDIM's own habit, made for pixels, would cut latents off.
        scheduler = DDIMScheduler.from_pretrained(info.folder / "scheduler", clip_sample=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseError(f"{base} could not be loaded: {str(error).splitlines()[0]}") from error
    return BaseModel(info, unet, vae, text_encoder, tokenizer, scheduler)


def _part(kind: Any, folder: Path, device: torch.device, **dtype: torch.dtype) -> Any:
    """Load one part, frozen. The libraries fill missing weights with random numbers, which nobody wants to find out."""
    part, found = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **dtype
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{len(missing)} weights of {folder.name} are missing, such as {missing[0]}")
    return part.to(device).eval().requires_grad_(False)


def best_device() -> torch.device:
    """The fastest device of this machine."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
