"""A base model in memory, of whichever family: UNet, VAE, text encoders and scheduler behind one interface.

Widths, prediction type, prompt embeddings and the UNet's prediction are asked for here and hard-coded nowhere else.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from atelier.adapters.core.family import FAMILIES
from atelier.adapters.core.parse import parse_path
from atelier.adapters.core.weight_only_int8 import QuantizedLayer, quantize_to_int8
from atelier.adapters.quantization.packed import load_packed, prepare_layers
from atelier.training.base_models.base_info import PACKED_UNET, BaseError, BaseInfo, read_json
from atelier.training.base_models.device import best_device, has_own_memory
from atelier.training.base_models.diffusers_internals import works_where_the_unet_is
from atelier.training.base_models.hub import download_model, is_hub_id
from atelier.training.base_models.identify import identify
from atelier.training.base_models.malloc_tuning import keep_freed_memory
from atelier.training.base_models.offload import CpuOffload, Offload
from atelier.training.base_models.precision import AUTO, drawing_dtype
from atelier.training.base_models.separate_vae import load_separate_vae
from atelier.training.base_models.single_file import load_parts
from atelier.training.base_models.weight_files import check_weights
from atelier.training.config.base_options import PLAIN_BASE, BaseOptions

MicroConditioning = tuple[int, int, int, int, int, int]
"""What Stable Diffusion XL reads of each picture: original height and width, top and left of the crop, height and width
now (micro-conditioning: Podell et al. 2023, arXiv 2307.01952, sec. 2.2). Other families ignore it."""


@dataclass(frozen=True, slots=True)
class PromptEmbeddings:
    """What the UNet reads of B captions or prompts."""

    features: Tensor                # [B, T, D]
    pooled: Tensor | None = None    # [B, P], Stable Diffusion XL only


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model. Its weights are frozen; adapters are mounted on it, never written into it."""

    info: BaseInfo
    unet: Any           # diffusers UNet2DConditionModel
    vae: Any            # diffusers AutoencoderKL
    text_encoder: Any   # transformers CLIPTextModel
    tokenizer: Any      # transformers CLIPTokenizer
    scheduler: Any      # diffusers noise scheduler
    text_encoder_2: Any = None   # transformers CLIPTextModelWithProjection, Stable Diffusion XL only
    tokenizer_2: Any = None
    offload_to: Offload | None = None   # where parts go that a step does not need; None: they stay
    home: torch.device | None = None    # the UNet's device, also while it is offloaded

    @property
    def device(self) -> torch.device:
        """The UNet's device. Read several times a step; diffusers' own property looks at every module."""
        device = next(self.unet.parameters()).device
        return self.home if self.home is not None and self.offload_to is not None and device.type == "cpu" else device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype."""
        return next(self.unet.parameters()).dtype

    @property
    def tokenizers_and_encoders(self) -> list[tuple[Any, Any]]:
        """Tokenizer and text encoder, one pair or two."""
        second = [] if self.text_encoder_2 is None else [(self.tokenizer_2, self.text_encoder_2)]
        return [(self.tokenizer, self.text_encoder), *second]

    @property
    def mergeable(self) -> bool:
        """Whether weights are precise enough to merge adapters into them; else adapters must be mounted."""
        quantized = any(isinstance(layer, QuantizedLayer) for layer in self.unet.modules())
        return self.dtype != torch.bfloat16 and not quantized

    def models(self) -> dict[str, nn.Module]:
        """The parts that adapters can change, by component name."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder}
        return parts if self.text_encoder_2 is None else {**parts, "text_encoder_2": self.text_encoder_2}

    @property
    def text_encoders(self) -> list[Any]:
        """The text encoders in the order in which the UNet takes their features: one, or two for SDXL."""
        return [encoder for _, encoder in self.tokenizers_and_encoders]

    def offload(self, *parts: nn.Module) -> None:
        """Offload parts; :meth:`on_device` brings them back for as long as they are needed."""
        if self.offload_to is not None:
            for part in parts:
                self.offload_to.offload(part)

    def onload(self, *parts: nn.Module) -> None:
        """Bring offloaded parts back to stay."""
        for part in parts:
            if self.offload_to is not None and self.offload_to.holds(part):
                self.offload_to.onload(part, self.device)

    @cached_property
    def half_vae(self) -> Any:
        """A copy of the VAE in bfloat16, for drawings that are short of memory."""
        return nn.Module.to(copy.deepcopy(self.vae), torch.bfloat16)   # not diffusers' own, which warns of nothing

    @contextmanager
    def on_device(self, *parts: nn.Module) -> Iterator[None]:
        """These parts are on the UNet's device while this is open; those that were offloaded go back afterwards."""
        offloaded = [] if self.offload_to is None else [part for part in parts if self.offload_to.holds(part)]
        for part in offloaded:
            self.offload_to.onload(part, self.device)   # type: ignore[union-attr]
        try:
            yield
        finally:
            self.offload(*offloaded)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: PromptEmbeddings, sizes: Sequence[MicroConditioning] | Tensor
    ) -> Tensor:
        """The UNet's prediction ``[B, C, h, w]`` for noisy latents ``[B, C, h, w]`` at ``timesteps [B]``."""
        added = None
        if text.pooled is not None:
            time_ids = torch.as_tensor(sizes, device=noisy.device, dtype=self.dtype)
            added = {"text_embeds": text.pooled, "time_ids": time_ids}
        return self.unet(
            noisy.to(self.dtype), timesteps, text.features, added_cond_kwargs=added, return_dict=False
        )[0]

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline over these same parts."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        parts: dict[str, Any] = {
            "vae": self.vae, "text_encoder": self.text_encoder, "tokenizer": self.tokenizer, "unet": self.unet,
            "scheduler": self.scheduler,
        }   # fmt: skip
        if self.text_encoder_2 is not None:
            second = {"text_encoder_2": self.text_encoder_2, "tokenizer_2": self.tokenizer_2}
            pipeline = works_where_the_unet_is(StableDiffusionXLPipeline)(**parts, **second, add_watermarker=False)
        else:
            make = works_where_the_unet_is(StableDiffusionPipeline)
            pipeline = make(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load(
    base: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None, *, in_8_bits: bool = False,
    resident: Collection[str] | None = None, options: BaseOptions = PLAIN_BASE,
) -> BaseModel:   # fmt: skip
    """Load a base model, frozen, for training or drawing.

    Without ``device`` it goes to the best device here; without ``dtype`` it stays in float32 on a CPU and takes
    float16 on a GPU. The VAE stays in float32: in float16 that of Stable Diffusion XL overflows to black pictures,
    and those of the others on some. With ``in_8_bits`` the UNet's layers are kept as ``weight_only_int8.py`` says. With
    ``resident`` only these parts go to a device that has its own memory, and the others wait in main memory. A hub
    model that is not here yet is downloaded. ``options`` is what a person says about the base model.

    Raises:
        BaseError: see :func:`identify`; also when weights are missing or don't fit their configuration.
    """
    from atelier.training.base_models.fewer_operations import skip_idle_operations  # both bring diffusers along
    from atelier.training.base_models.less_activation_memory import save_less_for_backward

    info = _downloaded(identify(base, options), options)
    target = torch.device(device) if device else best_device()
    unet_dtype = dtype or drawing_dtype(AUTO, target)
    if target.type == "cpu":
        keep_freed_memory()
    if has_own_memory(target):
        torch.set_float32_matmul_precision("high")   # products of float32 on tensor cores, as convolutions already are
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
    try:
        parts = load_parts(info, unet_dtype) if info.file else _folder_parts(info, unet_dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BaseError(f"{base} could not be loaded: {str(error).splitlines()[0]}") from error
    if in_8_bits:
        quantize_to_int8(parts["unet"], target)
    own = has_own_memory(target)
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
            if resident is None or name in resident or not own:
                part.to(target)
    prepare_layers(parts["unet"])
    save_less_for_backward(parts["unet"])
    skip_idle_operations(parts["unet"])
    return BaseModel(info, **parts, offload_to=CpuOffload() if own else None, home=target)


def _downloaded(info: BaseInfo, options: BaseOptions) -> BaseInfo:
    """A hub model whose weights are here."""
    if info.bytes or not is_hub_id(info.source) or info.file is not None or parse_path(info.source).exists():
        return info
    download_model(info.source)
    return identify(info.source, options)


def import_models() -> None:
    """Import what models are made of, before several threads do: one may find the classes of diffusers half there."""
    import diffusers
    import transformers

    for name in ("AutoencoderKL", "DDIMScheduler", "UNet2DConditionModel"):
        getattr(diffusers, name)
    for name in ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer"):
        getattr(transformers, name)


def _folder_parts(info: BaseInfo, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder, separate = info.folder, info.separate_vae
    parts: dict[str, Any] = {
        "unet": _unet(folder / "unet", dtype),
        "vae": load_separate_vae(separate, folder / "vae") if separate else
               _part(AutoencoderKL, folder / "vae", torch_dtype=torch.float32),
        "text_encoder": _part(CLIPTextModel, folder / "text_encoder", dtype=dtype),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        # Some files do not mention clipping, and DDIM's own default, made for pixels, would clip latents.
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False,
                                                   prediction_type=info.prediction_type),
    }   # fmt: skip
    if FAMILIES[info.family].two_text_encoders:
        parts["text_encoder_2"] = _part(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype=dtype)
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True)
    return parts


def _unet(folder: Path, dtype: torch.dtype) -> Any:
    """The UNet of a folder: as diffusers has it, or packed in integer codes (`adapters/quantization/packed.py`)."""
    from diffusers import UNet2DConditionModel

    if not (folder / PACKED_UNET).exists():
        return _part(UNet2DConditionModel, folder, torch_dtype=dtype)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(read_json(folder / "config.json", str(folder)))
    load_packed(unet, folder / PACKED_UNET, dtype)
    return unet


def _part(kind: Any, folder: Path, **dtype: torch.dtype) -> Any:
    """Load one part. The libraries would fill missing weights with random numbers: here they are an error."""
    variant = check_weights(folder.parent.name, folder.parent, folder.name).variant or None
    part, report = kind.from_pretrained(
        folder, variant=variant, local_files_only=True, use_safetensors=True, output_loading_info=True, **dtype
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} weights of {folder.name} are missing, such as {missing[0]}")
    return part
