"""Single-file checkpoints in the original (ldm) layout: what a file holds, and how its parts are loaded.

Configurations and tokenizer come from ``assets/models``, because diffusers would ask the network for them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atelier.adapters.core.family import FAMILIES, Family, TextEncoder
from atelier.adapters.formats.safetensors_header import HeaderError, TensorEntry, read_safetensors_header
from atelier.training.base_models.base_info import (
    BaseError,
    BaseInfo,
    check_inputs,
    family_of,
    make_info,
    precision_of,
    read_json,
)
from atelier.training.config.assets import ASSETS

MODELS = ASSETS / "models"
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CONV_IN = _UNET + "input_blocks.0.0.weight"
_ADAPTER = "is an adapter ({}), not a base model. Import it into the library"
_OTHERS = {   # part of a tensor's name → what such a file is
    "joint_blocks.0.": "is a Stable Diffusion 3 model, which is not supported",
    "double_blocks.0.": "is a FLUX model, which is not supported",
    "single_transformer_blocks.0.": "is a FLUX model, which is not supported",
    "control_model.": "is a ControlNet, not a base model",
    "lora_": _ADAPTER.format("LoRA"),
    ".lora.": _ADAPTER.format("LoRA"),
    "hada_w1": _ADAPTER.format("LoHa"),
    "lokr_w": _ADAPTER.format("LoKr"),
    "emb_params": "is a textual inversion, not a base model",
    "string_to_param": "is a textual inversion, not a base model",
    "up_blocks.": "is one part of a diffusers model. Use the folder that contains model_index.json",
    "decoder.up": "is only a VAE. Use a full checkpoint",
}


def identify_file(base: str, path: Path) -> BaseInfo:
    """Say what a single file holds, from its header alone.

    Raises:
        BaseError: not a checkpoint of a supported family, or one without all its parts.
    """
    try:
        header = read_safetensors_header(path)
    except HeaderError as error:
        raise BaseError(f"{base} {error}") from None
    tensors = header.tensors
    if _CONV_IN not in tensors:
        raise BaseError(f"{base} {_what_else(tensors)}.")
    family = family_of(base, _text_width(tensors))
    folder = MODELS / family.name
    unet, vae = (read_json(folder / part / "config.json", base) for part in ("unet", "vae"))
    check_inputs(base, tensors[_CONV_IN].shape[1], vae["latent_channels"])
    _check_parts(base, tensors, family)
    prediction = _prediction(path, header.metadata, tensors, family)
    if family.v_prediction_side and prediction == "v_prediction":
        unet["sample_size"] = family.v_prediction_side   # larger than that of the models that predict the noise
    return make_info(
        base, folder, family, unet, vae,
        prediction_type=prediction, file=path, bytes=path.stat().st_size, zero_snr="ztsnr" in tensors,
        precision=precision_of(entry for name, entry in tensors.items() if name.startswith(_UNET)),
    )   # fmt: skip


def load_parts(info: BaseInfo, dtype: torch.dtype) -> dict[str, Any]:
    """Load the parts of a single file on the CPU: UNet and text encoders in ``dtype``, the VAE in float32.

    diffusers converts the names; nothing is asked from the network.

    Raises:
        ValueError: weights are missing; the first is named.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils.logging import disable_progress_bar

    assert info.file is not None
    disable_progress_bar()
    family = FAMILIES[info.family]
    pipeline = StableDiffusionXLPipeline if family.two_text_encoders else StableDiffusionPipeline
    given: dict[str, Any] = {encoder.tokenizer: clip_tokenizer(encoder.pad_token) for encoder in family.text_encoders}
    if not family.two_text_encoders:
        given |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    logging.getLogger("diffusers.loaders.single_file_utils").setLevel(logging.ERROR)
    source: dict[str, Any] = {"config": str(info.folder), "local_files_only": True}
    vae = AutoencoderKL.from_single_file(str(info.file), subfolder="vae", torch_dtype=torch.float32, **source)
    whole: Any = pipeline.from_single_file(
        str(info.file), vae=vae, scheduler=new_scheduler(info), torch_dtype=dtype, **source, **given
    )
    names = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    parts = {name: part for name in names if (part := getattr(whole, name, None)) is not None}
    for name, part in parts.items():
        if isinstance(part, nn.Module) and (missing := [k for k, value in part.named_parameters() if value.is_meta]):
            raise ValueError(f"{len(missing)} weights of {name} are missing, such as {missing[0]}")
    return parts


def new_scheduler(info: BaseInfo) -> Any:
    """The noise schedule of Stable Diffusion 1, 2 and XL, which single files leave out."""
    from diffusers import DDIMScheduler

    prediction: Any = info.prediction_type
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction, rescale_betas_zero_snr=info.zero_snr,
        timestep_spacing="trailing" if info.zero_snr else "leading",
    )   # fmt: skip


def clip_tokenizer(pad: str) -> Any:
    """CLIP's tokenizer from its merges: bytes, bytes that end a word, one token a merge, then start and end."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = (MODELS / "clip_merges.txt").read_text(encoding="utf-8").splitlines()
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges),
              "<|startoftext|>", "<|endoftext|>"]   # fmt: skip
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77)


def _text_width(tensors: Mapping[str, TensorEntry]) -> int:
    names = (name for name in tensors if name.startswith(_UNET) and name.endswith("attn2.to_k.weight"))
    return next((tensors[name].shape[-1] for name in names), 0)


def _check_parts(base: str, tensors: Mapping[str, TensorEntry], family: Family) -> None:
    cure = "Use the full checkpoint."
    if not any(name.startswith(_VAE) for name in tensors):
        raise BaseError(f"{base} has no VAE, the part that turns latents into pictures. {cure}")
    for encoder in family.text_encoders:
        names = _token_embeddings(encoder)
        found = next((tensors[name].shape[-1] for name in names if name in tensors), None)
        if found != encoder.width:
            what = "no text encoder" if found is None else f"a text encoder of width {found}"
            raise BaseError(f"{base} has {what}, but {family.title} needs one of width {encoder.width}. {cure}")


def _token_embeddings(encoder: TextEncoder) -> tuple[str, ...]:
    """Names that the token embedding of a text encoder may have; some tools drop `text_model.`."""
    if encoder.open_clip:
        return (f"{encoder.original_prefix}token_embedding.weight",)
    embedding = "embeddings.token_embedding.weight"
    return f"{encoder.original_prefix}text_model.{embedding}", f"{encoder.original_prefix}{embedding}"


def _prediction(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorEntry], family: Family) -> str:
    """The prediction type. Weights don't tell it: metadata, a ``.yaml`` file of the same name or trainers' marks do."""
    text = metadata.get("modelspec.prediction_type", "")
    with suppress(OSError):
        text = text or path.with_suffix(".yaml").read_text(encoding="utf-8", errors="replace")
    if text:
        return "v_prediction" if text in ("v", "v_prediction") or 'parameterization: "v"' in text else "epsilon"
    if family.v_prediction_side:   # the model for 768 pixels predicts v, and the one for 512 tells so in its name
        return "epsilon" if "512" in metadata.get("modelspec.architecture", "") + path.stem else "v_prediction"
    return "v_prediction" if "v_pred" in tensors else "epsilon"


def _what_else(tensors: Mapping[str, TensorEntry]) -> str:
    """What a safetensors file is that holds no UNet of the original layout."""
    for part, what in _OTHERS.items():
        if any(part in name for name in tensors):
            return what
    return "is a safetensors file, but contains no Stable Diffusion model in a format that Atelier knows"
