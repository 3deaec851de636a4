"""Facts on a base model that are read before its weights are loaded, and the rules on which ones can be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.adapters.core.family import EMBEDDED_FAMILY, FAMILIES, Family, family_title
from atelier.adapters.core.parse import parse_toml
from atelier.adapters.formats.safetensors_header import TensorEntry
from atelier.training.base_models.distilled import FewSteps
from atelier.training.config.caption_template import fill_template
from atelier.training.config.train_config import EMBEDDED

_TEXT_WIDTHS = {family.text_width: family for family in FAMILIES.values()}
_TASKS = {9: "an inpainting model", 8: "a model that edits pictures (InstructPix2Pix)", 5: "a depth model",
          7: "an upscaler"}   # fmt: skip
PACKED_UNET = "packed.safetensors"   # the UNet's weights in codes, where a folder is a compressed base model
SUPPORTED = "Atelier works with Stable Diffusion 1.x, 2.x and XL."
GUIDANCE_EMBEDDED = ("{} is a model that reads the guidance as an input (LCM), which is not supported. Use the model "
                     "that it was made from, with an LCM adapter for few steps.")
EDM = ("{} was trained with EDM's noise levels (as Playground 2.5 and CosXL), which are not supported. Use a Stable "
       "Diffusion XL model with the usual noise schedule.")
_PROMPT_FIELDS = ("style_template", "styles", "things", "neutral_words")   # of prompts.toml, beside the caption
_FORMER_FIELDS = {"styled": "style_template", "quiet_words": "neutral_words"}   # in folders written by older versions
_MAX_JSON = 10_000_000   # bytes; the largest, a tokenizer's, have 2 MB
_DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}


class BaseError(ValueError):
    """Something that can't be used as a base model; the message says what it is and the cure."""


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What a base model is, read from its headers and small configuration files alone."""

    source: str            # what the person gave: 'embedded', a folder, a file, a hub id
    title: str             # a name for pages
    family: str            # name of its Family
    prediction_type: str   # epsilon, v_prediction
    resolution: int        # picture side in pixels it was made for
    vae_scale_factor: int            # picture pixels per latent pixel
    size_multiple: int          # picture sides must be multiples of this
    channels: int          # width of the UNet's first block
    folder: Path           # where the configurations are
    caption: str           # caption template with {trigger} and {subject}
    file: Path | None = None   # the checkpoint, when it is a single file
    precision: str = ""    # of the UNet's weights: fp32, fp16, bf16, fp8, or a preset such as w4a8; empty when unknown
    bytes: int = 0         # size of the weights on disk
    zero_snr: bool = False   # trained with a zero terminal signal-to-noise ratio: the schedule must end there as well
    separate_vae: Path | None = None   # file or folder of another VAE, which replaces the model's own
    few_steps: FewSteps | None = None   # how it is drawn with, if it was distilled to need few steps
    assumed: str = ""   # what no file says and was assumed, in a sentence
    prior_prompts: tuple[str, ...] = ()   # varied things it can draw, for prior preservation
    style_template: str = "a {style} picture of a {subject}"   # caption template that names a style
    styles: tuple[str, ...] = ("watercolour", "pencil", "pixel art")   # styles that it knows
    things: tuple[str, ...] = ("house", "dog", "tree", "car", "cup", "boat", "chair", "cat")   # things that it knows
    neutral_words: tuple[str, ...] = ()   # made-up words that mean nothing to it: good trigger words

    @property
    def warnings(self) -> list[str]:
        """What a person should know before training with it, in sentences."""
        few = self.few_steps
        distilled = few and (
            f"{self.title} is a {few.method} model, distilled to draw in few steps. Training on it works, but the "
            "adapter may blur its pictures or need more steps. An adapter trained on the model that it was made from "
            f"works with both. It is drawn with {few.settings}.")
        return [text for text in (self.assumed, distilled) if text]

    @property
    def kind(self) -> str:
        """Family and prediction type in words, as a card shows them."""
        return family_title(self.family) + (" (v-prediction)" if self.prediction_type == "v_prediction" else "")

    def style_caption(self, style: str, subject: str) -> str:
        """The caption of a subject drawn in a style."""
        return fill_template(self.style_template, style=style, subject=subject)


def make_info(
    base: str, folder: Path, family: Family, unet: Mapping[str, Any], vae: Mapping[str, Any], **fields: Any
) -> BaseInfo:
    """Build the record from the configurations of UNet and VAE; ``fields`` are the others."""
    if not isinstance(unet["sample_size"], int):
        raise BaseError(f"{base} is not a base model: the sample_size of its UNet is not a number. Download it again.")
    vae_scale_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    words = _read_prompts(folder)
    return BaseInfo(
        source=base,
        title=EMBEDDED_FAMILY.title if base == EMBEDDED else Path(base).name,
        family=family.name,
        resolution=unet["sample_size"] * vae_scale_factor,
        vae_scale_factor=vae_scale_factor,
        size_multiple=vae_scale_factor * 2 ** (len(unet["block_out_channels"]) - 1),
        channels=unet["block_out_channels"][0],
        folder=folder,
        caption=words.get("caption", "a photo of {subject}").replace("{subject}", "{trigger} {subject}"),
        prior_prompts=tuple(words.get("prior_prompts", ())),
        **{name: _as_tuple(words[name]) for name in _PROMPT_FIELDS if name in words},
        **fields,
    )


def family_of(base: str, width: object) -> Family:
    """The family whose text features have this width.

    Raises:
        BaseError: there is none.
    """
    family = _TEXT_WIDTHS.get(width) if isinstance(width, int) else None
    if family is None:
        what = "the SDXL refiner, which can't draw on its own" if width == 1280 else "a model of an unknown family"
        raise BaseError(f"{base} reads text features of width {width}: it is {what}. Use a Stable Diffusion 1.x, 2.x "
                        "or XL base model.")
    return family


def check_inputs(base: str, channels: int, latent: int) -> None:
    """Refuse UNets that read more than the noisy latents.

    Raises:
        BaseError: such a UNet, with what it is made for.
    """
    if channels != latent:
        what = _TASKS.get(channels if isinstance(channels, int) else 0, "a model for another task")
        raise BaseError(f"{base} is {what}: its UNet has {channels} input channels instead of {latent}. Use the "
                        "text-to-image model of the same family.")


def precision_of(tensors: Iterable[TensorEntry]) -> str:
    """What most of the weights are stored in."""
    sizes: dict[str, int] = {}
    for entry in tensors:
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.bytes
    return _DTYPES.get(max(sizes, key=lambda name: sizes[name]), "") if sizes else ""


def read_json(path: Path, base: str, *needed: str) -> dict[str, Any]:
    """Read a configuration file that has the ``needed`` entries.

    Raises:
        BaseError: it is missing, damaged or lacks an entry.
    """
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MAX_JSON else None
        if isinstance(values, dict) and all(name in values for name in needed):
            return values
    raise BaseError(
        f"{base} is not a base model: {path.name} is missing or can't be read. A diffusers folder contains "
        "model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/."
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_prompts(folder: Path) -> dict[str, Any]:
    """The table of ``prompts.toml``, where the folder has one that can be read."""
    try:
        values = parse_toml((folder / "prompts.toml").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {_FORMER_FIELDS.get(name, name): value for name, value in values.items()}
