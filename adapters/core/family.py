"""The families of base models: one record for each, with everything that differs between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One text encoder of a family: where a pipeline keeps it and how wide its features are."""

    component: str         # its folder in a diffusers model
    tokenizer: str         # folder of its tokenizer
    width: int             # of its token embeddings
    pad_token: str         # what its tokenizer fills captions up with
    kohya_prefix: str      # of its layers in LoRA files of kohya's layout
    original_prefix: str   # of its weights in single-file checkpoints of the original (ldm) layout; empty: none exist

    @property
    def open_clip(self) -> bool:
        """Whether original checkpoints hold it in OpenCLIP's layout; else in that of transformers."""
        return self.original_prefix.endswith(".model.")


@dataclass(frozen=True, slots=True)
class Family:
    """A family of base models: same layers and widths, so that an adapter for one model works with all of them."""

    name: str              # in files and recipes
    title: str             # for people
    text_width: int        # of the text features that cross-attention reads
    text_encoders: tuple[TextEncoder, ...]
    kohya_version: str     # kohya's ss_base_model_version
    architecture: str      # modelspec.architecture
    marks: tuple[str, ...]   # parts of either that tell the family, whatever the tool and its version
    a1111_version: str = "Unknown"   # A1111's "sd version" of an adapter
    conv_projections: bool = False   # projections around transformer blocks are 1×1 convolutions; else linear layers
    v_prediction_side: int = 0       # latent side of its v-prediction models, where there are official ones
    original_unet_names: bool = False   # kohya's files name the UNet's layers as the original code does, not diffusers

    @property
    def two_text_encoders(self) -> bool:
        """Whether there are two; the UNet then also reads pooled text features and micro-conditioning."""
        return len(self.text_encoders) == 2

    @property
    def single_file(self) -> bool:
        """Whether its models exist as single-file checkpoints."""
        return bool(self.text_encoders[0].original_prefix)

    @property
    def kohya_prefixes(self) -> dict[str, str]:
        """Component → prefix of its layers in LoRA files of kohya's layout."""
        encoders = {encoder.component: encoder.kohya_prefix for encoder in self.text_encoders}
        return {"unet": "lora_unet_", **encoders}


_END = "<|endoftext|>"
# InvokeAI knows a lone text encoder as `lora_te_` only; two are numbered.
SD1 = Family(
    "sd1", "Stable Diffusion 1.x", 768,
    (TextEncoder("text_encoder", "tokenizer", 768, _END, "lora_te_", "cond_stage_model.transformer."),),
    "sd_v1", "stable-diffusion-v1", ("sd_v1", "stable-diffusion-v1"), "SD1", conv_projections=True,
)   # fmt: skip
SD2 = Family(
    "sd2", "Stable Diffusion 2.x", 1024,
    (TextEncoder("text_encoder", "tokenizer", 1024, "!", "lora_te_", "cond_stage_model.model."),),
    "sd_v2", "stable-diffusion-v2", ("sd_v2", "stable-diffusion-v2"), "SD2", v_prediction_side=96,
)   # fmt: skip
SDXL = Family(
    "sdxl", "Stable Diffusion XL", 2048,
    (TextEncoder("text_encoder", "tokenizer", 768, _END, "lora_te1_", "conditioner.embedders.0.transformer."),
     TextEncoder("text_encoder_2", "tokenizer_2", 1280, "!", "lora_te2_", "conditioner.embedders.1.model.")),
    "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", ("sdxl", "stable-diffusion-xl"), "SDXL",
    original_unet_names=True,
)   # fmt: skip
# It has names of its own in other tools' fields, although its layers are called as in Stable Diffusion 1: its widths
# differ, so no tool should offer its adapters for that.
EMBEDDED_FAMILY = Family(
    "embedded", "Atelier's own small model", 192,
    (TextEncoder("text_encoder", "tokenizer", 192, _END, "lora_te_", ""),),
    "atelier_embedded", "atelier-embedded-v1", ("embedded",), conv_projections=True,
)   # fmt: skip
FAMILIES = {family.name: family for family in (EMBEDDED_FAMILY, SD1, SD2, SDXL)}


def family_title(name: str) -> str:
    """The title of a family; empty for a name that is none."""
    return FAMILIES[name].title if name in FAMILIES else ""
