"""What is this base model? Read from headers and configuration files, in milliseconds, without loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from atelier.adapters.core.parse import parse_path
from atelier.adapters.formats.safetensors_header import HeaderError, cached_safetensors_header
from atelier.adapters.quantization.packed import read_packed_contents
from atelier.training.base_models.base_info import (
    EDM,
    GUIDANCE_EMBEDDED,
    PACKED_UNET,
    SUPPORTED,
    BaseError,
    BaseInfo,
    check_inputs,
    family_of,
    make_info,
    precision_of,
    read_json,
)
from atelier.training.base_models.check_config import check_configurations
from atelier.training.base_models.checkpoint_layout import check_tensors, check_tokenizers
from atelier.training.base_models.distilled import FewSteps, distilled_by_name, distilled_by_scheduler
from atelier.training.base_models.hub import cached_folder, download_configurations, is_hub_id
from atelier.training.base_models.separate_vae import check_separate_vae
from atelier.training.base_models.single_file import identify_file
from atelier.training.base_models.weight_files import WeightFiles, check_weights
from atelier.training.config.assets import ASSETS
from atelier.training.config.base_options import AUTO_PREDICTION, PLAIN_BASE, PREDICTIONS, BaseOptions
from atelier.training.config.train_config import EMBEDDED

EMBEDDED_FOLDER = ASSETS / "base"
INDEX_FILE = "model_index.json"
# Pipelines over the same parts; what a UNet reads says whether it is a text-to-image model.
_PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
)   # fmt: skip
_UNET_ENTRIES = ("cross_attention_dim", "in_channels", "sample_size", "block_out_channels")
_VAE_ENTRIES = ("latent_channels", "block_out_channels")


def identify(base: str, options: BaseOptions = PLAIN_BASE) -> BaseInfo:
    """Say what a base model is: 'embedded', a diffusers folder, a single ``.safetensors`` file, or a hub id.

    Of a hub model that is not downloaded only the configurations are fetched.

    Args:
        base: the base model.
        options: what a person says about it: they replace what its files say.

    Raises:
        BaseError: not a base model, or one that Atelier can't use; with the reason and the cure.
    """
    if base == EMBEDDED:
        look = identify_folder if options.vae else _identify_once   # a VAE lies outside, and may change
        return look(base, EMBEDDED_FOLDER, options)
    path = parse_path(base)
    if path.is_dir():
        return identify_folder(base, _model_folder(base, path), options)
    if path.is_file():
        if path.name == INDEX_FILE:
            raise BaseError(f"{base} is the index of a diffusers model. Use the folder that contains it.")
        return identify_file(base, path, options)
    if path.is_symlink():
        raise BaseError(f"{base} is a link to {path.readlink()}, which does not exist. Download the model again.")
    if is_hub_id(base):
        here = cached_folder(base)
        return identify_folder(base, here or download_configurations(base), options, whole=here is not None)
    raise BaseError(f"{base[:500]} does not exist. A base model is 'embedded', a diffusers folder, a .safetensors "
                    "file, or a hub id such as 'owner/model'.")


@cache
def _identify_once(base: str, folder: Path, options: BaseOptions) -> BaseInfo:
    """A part of the package does not change, and a moving slider asks for it at every picture."""
    return identify_folder(base, folder, options)


def _model_folder(base: str, folder: Path) -> Path:
    """The folder itself, or the newest snapshot in a hub model's folder of the download cache.

    Raises:
        BaseError: a folder beside or around the model, with where the model is.
    """
    if (folder / INDEX_FILE).exists():
        return folder
    with suppress(OSError):
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if commit and (snapshot := folder / "snapshots" / Path(commit).name).is_dir():
            return snapshot
    if (folder.absolute().parent / INDEX_FILE).exists():
        raise BaseError(f"{base} is one part of a diffusers model. Use the folder above it.")
    files = sorted(folder.glob("*.safetensors"))
    if files:
        raise BaseError(f"{base} is a folder with {files[0].name}, not a diffusers model. Use the file itself.")
    return folder


def identify_folder(
    base: str, folder: Path, options: BaseOptions = PLAIN_BASE, *, whole: bool = True
) -> BaseInfo:
    """Say what a diffusers folder holds; ``base`` is what the person called it.

    Args:
        base: what the person called it.
        folder: the folder.
        options: what a person says about it.
        whole: the weights must be there as well.

    Raises:
        BaseError: see :func:`identify`.
    """
    index = read_json(folder / INDEX_FILE, base)
    if index.get("_class_name") not in _PIPELINES:
        raise BaseError(f"{base} is a {str(index.get('_class_name'))[:80]}, which is not supported. {SUPPORTED}")
    check_configurations(base, folder)
    unet = read_json(folder / "unet" / "config.json", base, *_UNET_ENTRIES)
    vae = read_json(folder / "vae" / "config.json", base, *_VAE_ENTRIES)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", base)
    check_inputs(base, unet["in_channels"], vae["latent_channels"])
    family = family_of(base, unet["cross_attention_dim"])
    _check_training(base, unet, vae, scheduler)
    _check_encoders(base, folder, index, unet["cross_attention_dim"])
    prediction = scheduler.get("prediction_type", "epsilon")
    weights = _check_all_weights(base, folder, index, own_vae=not options.vae) if whole else {}
    return make_info(
        base, folder, family, unet, vae,
        prediction_type=prediction if options.prediction == AUTO_PREDICTION else options.prediction,
        precision=_precision(folder, weights.get("unet")),
        bytes=sum((folder / part / name).stat().st_size for part, files in weights.items() for name in files.names),
        zero_snr=bool(scheduler.get("rescale_betas_zero_snr")),
        separate_vae=check_separate_vae(options.vae, vae), few_steps=_few_steps(base, folder, scheduler),
    )   # fmt: skip


def _few_steps(base: str, folder: Path, scheduler: Mapping[str, Any]) -> FewSteps | None:
    """Told by the class of the scheduler, else by the name; a folder of the hub's cache is named after the model."""
    cached = next((part for part in folder.parts if part.startswith("models--")), "")
    name = Path(base).name if parse_path(base).is_dir() else base
    return distilled_by_scheduler(str(scheduler.get("_class_name"))) or distilled_by_name([name, cached])


def _check_training(
    base: str, unet: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> None:
    """Refuse models that read or predict something else than Stable Diffusion's do."""
    if unet.get("time_cond_proj_dim") is not None:
        raise BaseError(GUIDANCE_EMBEDDED.format(base))
    name = str(scheduler.get("_class_name", ""))
    if name.startswith("EDM") or vae.get("latents_mean") is not None:
        raise BaseError(EDM.format(base))
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS[1:] or scheduler.get("use_flow_sigmas") or name.startswith("FlowMatch"):
        raise BaseError(f"{base} predicts {str(prediction)[:40]} along a flow (flow matching), which is not supported. "
                        f"{SUPPORTED}")


def _check_encoders(base: str, folder: Path, index: Mapping[str, Any], width: int) -> None:
    """The text encoders' features, side by side, are what the cross-attention reads."""
    names = [name for name in ("text_encoder", "text_encoder_2") if index.get(name) not in (None, [None, None])]
    configurations = [read_json(folder / name / "config.json", base) for name in names]
    widths = [values.get("hidden_size", 0) for values in configurations]
    if sum(widths) != width:
        raise BaseError(f"{base} has a text encoder of width {' + '.join(map(str, widths)) or 0}, but its UNet reads "
                        f"text features of width {width}. Its parts come from different models: download it again.")


def _check_all_weights(
    base: str, folder: Path, index: Mapping[str, Any], *, own_vae: bool
) -> dict[str, WeightFiles]:
    """The weight files of every part that is loaded; the embedded base, which comes with Atelier, is known to be whole.
    """
    parts = ["unet", *(["vae"] if own_vae else []), *(name for name in ("text_encoder", "text_encoder_2")
                                                      if index.get(name))]   # fmt: skip
    weights = {part: check_weights(base, folder, part) for part in parts}
    if folder != EMBEDDED_FOLDER:
        check_tensors(base, folder, weights)
        check_tokenizers(base, folder, tuple(part.replace("text_encoder", "tokenizer") for part in parts
                                             if part.startswith("text_encoder")))   # fmt: skip
    return weights


def _precision(folder: Path, files: WeightFiles | None) -> str:
    if files is None:
        return ""
    with suppress(HeaderError, ValueError):
        path = folder / "unet" / files.names[0]
        if path.name == PACKED_UNET:
            return read_packed_contents(path).preset
        return precision_of(cached_safetensors_header(path).tensors.values())
    return ""
