"""Single-file checkpoints in the original (ldm) layout: what a file holds, and how its parts are loaded.

Configurations and tokenizer come from ``assets/models``, because diffusers would ask the network for them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from atelier.adapters.core.family import FAMILIES, Family, TextEncoder
from atelier.adapters.formats.safetensors_header import HeaderError, TensorEntry, cached_safetensors_header
from atelier.training.base_models.base_info import (
    EDM,
    GUIDANCE_EMBEDDED,
    SUPPORTED,
    BaseError,
    BaseInfo,
    check_inputs,
    family_of,
    make_info,
    precision_of,
    read_json,
)
from atelier.training.base_models.checkpoint_layout import UNET, VAE, check_layout, without_text_model
from atelier.training.base_models.distilled import distilled_by_name
from atelier.training.base_models.separate_vae import check_separate_vae, load_separate_vae
from atelier.training.config.assets import ASSETS
from atelier.training.config.base_options import AUTO_PREDICTION, PLAIN_BASE, PREDICTIONS, BaseOptions

MODELS = ASSETS / "models"
_CONV_IN = UNET + "input_blocks.0.0.weight"
_ADAPTER = "is an adapter ({}), not a base model. Import it into the library"
_OTHER_MODEL = f"is a {{}} model, which is not supported. {SUPPORTED}"
_OTHERS = {   # part of a tensor's name → what such a file is
    "controlnet_": "is a ControlNet, not a base model. Use a full checkpoint",
    "control_model.": "is a ControlNet, not a base model. Use a full checkpoint",
    "motion_modules.": "is an AnimateDiff motion module, not a base model. Use a full checkpoint",
    "ip_adapter.": "is an IP-Adapter, not a base model. Use a full checkpoint",
    "lora_": _ADAPTER.format("LoRA"),
    ".lora.": _ADAPTER.format("LoRA"),
    "hada_w1": _ADAPTER.format("LoHa"),
    "lokr_w": _ADAPTER.format("LoKr"),
    "oft_blocks": _ADAPTER.format("OFT"),
    "emb_params": "is a textual inversion, not a base model. Use a full checkpoint",
    "string_to_param": "is a textual inversion, not a base model. Use a full checkpoint",
    "clip_g": "is a textual inversion, not a base model. Use a full checkpoint",
    "joint_blocks.0.": _OTHER_MODEL.format("Stable Diffusion 3"),
    "double_blocks.0.": _OTHER_MODEL.format("FLUX"),
    "single_transformer_blocks.0.": _OTHER_MODEL.format("FLUX"),
    "clip_txt_mapper.": _OTHER_MODEL.format("Stable Cascade"),
    "cap_embedder.": _OTHER_MODEL.format("Lumina"),
    "up_blocks.": "is one part of a diffusers model. Use the folder that contains model_index.json",
    "decoder.up": "is only a VAE. Use a full checkpoint; this file can replace its VAE",
    "decoder.layers.": "is only a small VAE for previews (TAESD). Use a full checkpoint",
    "text_model.encoder.": "is only a text encoder. Use a full checkpoint",
    "encoder.block.0.layer.": "is only a T5 text encoder. Use a full checkpoint",
    "resblocks.0.attn.": "is only a text encoder. Use a full checkpoint",
    "RRDB": "is an upscaler, not a base model. Use a full checkpoint",
    "diffusion_model.": _OTHER_MODEL.format("diffusion transformer or other"),
    "transformer_blocks.0.": _OTHER_MODEL.format("diffusion transformer"),
}
_EMBEDDING = "embeddings.token_embedding.weight"
_NOT_WHOLE = ("is only a UNet, as ComfyUI keeps it in diffusion_models: its text encoder and VAE are other files. Use "
              "the full checkpoint; ComfyUI's node Save Checkpoint writes one")   # fmt: skip


def identify_file(base: str, path: Path, options: BaseOptions = PLAIN_BASE) -> BaseInfo:
    """Say what a single file holds, from its header alone.

    Raises:
        BaseError: not a checkpoint of a supported family, or one without all its parts.
    """
    try:
        header = cached_safetensors_header(path)
    except HeaderError as error:
        raise BaseError(f"{base} {error}") from None
    tensors = header.tensors
    if _CONV_IN not in tensors:
        raise BaseError(f"{base} {_what_else(tensors)}.")
    family = family_of(base, _text_width(tensors))
    folder = MODELS / family.name
    unet, vae = (read_json(folder / part / "config.json", base) for part in ("unet", "vae"))
    check_inputs(base, tensors[_CONV_IN].shape[1], vae["latent_channels"])
    _check_training(base, tensors)
    _check_parts(base, tensors, family, needs_vae=not options.vae)
    check_layout(base, tensors, family, folder, vae=not options.vae)
    found, assumed = _prediction(path, header.metadata, tensors, family)
    prediction = found if options.prediction == AUTO_PREDICTION else options.prediction
    if family.v_prediction_side and prediction == "v_prediction":
        unet["sample_size"] = family.v_prediction_side   # larger than that of the models that predict the noise
    return make_info(
        base, folder, family, unet, vae,
        prediction_type=prediction, file=path, bytes=path.stat().st_size, zero_snr=_zero_snr(header.metadata, tensors),
        precision=precision_of(entry for name, entry in tensors.items() if name.startswith(UNET)),
        separate_vae=check_separate_vae(options.vae, vae), few_steps=distilled_by_name(_names(path, header.metadata)),
        assumed="" if prediction != found else assumed,
    )   # fmt: skip


def _names(path: Path, metadata: Mapping[str, str]) -> list[str]:
    return [metadata.get("modelspec.architecture", ""), path.stem, metadata.get("modelspec.title", "")]


def _zero_snr(metadata: Mapping[str, str], tensors: Mapping[str, TensorEntry]) -> bool:
    return "ztsnr" in tensors or metadata.get("ss_zero_terminal_snr", "") == "True"


def _check_training(base: str, tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse models that read or predict something else than Stable Diffusion's do."""
    if UNET + "time_embed.cond_proj.weight" in tensors:
        raise BaseError(GUIDANCE_EMBEDDED.format(base))
    if any(name.startswith(("edm_mean", "edm_std", "edm_vpred.")) for name in tensors):
        raise BaseError(EDM.format(base))


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
    given |= _renamed_encoders(info, family, dtype)
    if not family.two_text_encoders:
        given |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    logging.getLogger("diffusers.loaders.single_file_utils").setLevel(logging.ERROR)
    source: dict[str, Any] = {"config": str(info.folder), "local_files_only": True}
    if info.separate_vae:
        vae = load_separate_vae(info.separate_vae, info.folder / "vae")
    else:
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


def _renamed_encoders(info: BaseInfo, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """Text encoders whose weights have names that diffusers does not know: without the level ``text_model.``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    assert info.file is not None
    loaded: dict[str, Any] = {}
    with safe_open(info.file, "pt") as file:
        for encoder in family.text_encoders:
            if encoder.open_clip or f"{encoder.original_prefix}{_EMBEDDING}" not in file.keys():  # noqa: SIM118
                continue
            config = read_json(info.folder / encoder.component / "config.json", info.source)
            model = nn.Module.to(CLIPTextModel(CLIPTextConfig.from_dict(config)), dtype)
            # Only its own: such files may hold buffers, too.
            state = {name: file.get_tensor(_stored_name(encoder, name)) for name, _ in model.named_parameters()}
            model.load_state_dict(state, strict=False)
            loaded[encoder.component] = model
    return loaded


def _stored_name(encoder: TextEncoder, name: str) -> str:
    return encoder.original_prefix + name.removeprefix("text_model.")


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
    names = (name for name in tensors if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
    return next((tensors[name].shape[-1] for name in names), 0)


def _check_parts(base: str, tensors: Mapping[str, TensorEntry], family: Family, *, needs_vae: bool) -> None:
    cure = "Use the full checkpoint."
    if needs_vae and not any(name.startswith(VAE) for name in tensors):
        raise BaseError(f"{base} has no VAE, the part that turns latents into pictures. Use the full checkpoint, or "
                        "choose a VAE for it (--vae FILE, or in Settings).")
    names = {without_text_model(name, family): entry for name, entry in tensors.items()}
    for encoder in family.text_encoders:
        embedding = f"{encoder.original_prefix}{'token_embedding.weight' if encoder.open_clip else _EMBEDDING}"
        found = names[embedding].shape[-1] if embedding in names else None
        if found != encoder.width:
            what = "no text encoder" if found is None else f"a text encoder of width {found}"
            raise BaseError(f"{base} has {what}, but {family.title} needs one of width {encoder.width}. {cure}")


_V_NAME = re.compile(r"(?:(?<![a-z])v|V)[\s_-]?(?:[pP]red|PRED)(?:iction|ICTION)?(?![a-z])")


def _prediction(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorEntry], family: Family
) -> tuple[str, str]:
    """The prediction type, and what was assumed where nothing in the file says it.

    Weights don't tell it: metadata, a ``.yaml`` file of the same name or trainers' marks do, else the name.
    """
    text = metadata.get("modelspec.prediction_type", "")
    with suppress(OSError):
        text = text or path.with_suffix(".yaml").read_text(encoding="utf-8", errors="replace")
    if text:
        return ("v_prediction" if text in ("v", "v_prediction") or 'parameterization: "v"' in text else
                text if text in PREDICTIONS else "epsilon"), ""   # fmt: skip
    if "v_pred" in tensors or metadata.get("ss_v_parameterization") == "True":
        return "v_prediction", ""
    if _V_NAME.search(path.stem):
        return "v_prediction", assumed_prediction(path.name, "v_prediction", "from its name")
    if family.v_prediction_side:   # the model for 768 pixels predicts v, and the one for 512 tells so in its name
        small = "512" in metadata.get("modelspec.architecture", "") + path.stem
        found = "epsilon" if small else "v_prediction"
        official = small or "768" in path.stem
        return found, "" if official else assumed_prediction(path.name, found, f"as in most {family.title} models")
    return "epsilon", ""


def assumed_prediction(name: str, prediction: str, why: str) -> str:
    """What is assumed about a model whose files don't say what it predicts, and how to say otherwise."""
    return (f"{name} does not say what it predicts: {prediction} is assumed, {why}. If drawings are noise, set its "
            "prediction.")


def _what_else(tensors: Mapping[str, TensorEntry]) -> str:
    """What a safetensors file is that holds no UNet of the original layout."""
    if "input_blocks.0.0.weight" in tensors:
        return _NOT_WHOLE
    for part, what in _OTHERS.items():
        if any(part in name for name in tensors):
            return what
    return "is a safetensors file, but contains no Stable Diffusion model in a format that Atelier knows"
