"""What a file is that is no adapter Atelier can use, told from the names and shapes of its tensors.

Every answer is the end of a sentence that begins with the file's name, and says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from atelier.adapters.formats.layer_shapes import Shape

_OURS = "Atelier works with Stable Diffusion 1.x, 2.x and XL: look for a version made for one of them."


def _for(model: str) -> str:
    return f"is an adapter for {model}. {_OURS}"


# Part of a tensor name → what adapters for other architectures are called. Such a file can hold layers of a CLIP text
# encoder too, which look like Stable Diffusion's, so it is refused whatever else is in it. The first that fits counts.
_OTHER_MODELS: tuple[tuple[str, str], ...] = tuple((pattern, _for(model)) for pattern, model in (
    (r"motion_modules|temporal_transformer(\.|_)(norm|proj|transformer)",
     "AnimateDiff, which animates pictures and needs a motion module"),
    (r"temporal_transformer_blocks|time_mixer", "Stable Video Diffusion"),
    (r"lora_prior_(unet|te)_", "Stable Cascade"),
    (r"(img|txt)_mlp[._]net|img_mod[._]1|transformer_blocks[._]\d+[._](img|txt)_mod", "Qwen-Image"),
    (r"(context|noise)_refiner|layers[._]\d+[._](attention[._](qkv|to_[qkv]|out)|adaLN_modulation)",
     "Z-Image or Lumina"),
    (r"double_stream_blocks|single_stream_blocks", "HiDream"),
    (r"(img|txt)_attn_(qkv|proj)[._]|individual_token_refiner", "FLUX or HunyuanVideo"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "FLUX"),
    (r"joint_blocks|joint_transformer_blocks|x_block[._]attn|context_block[._]attn", "Stable Diffusion 3"),
    (r"transformer_transformer_blocks_\d+_attn_add_|transformer\.transformer_blocks\.\d+\.attn\.(add_|to_)"
     r"|lora_te3_|lora_unet_transformer_blocks_\d+_attn_(add|to)_", "Stable Diffusion 3"),
    (r"(^|[._])blocks[._]\d+[._](cross_attn|self_attn|ffn)|condition_embedder|img_emb[._]proj", "Wan, a video model"),
    (r"(^|[._])blocks[._]\d+[._](attn[12]?|cross_attention|mlp)[._](Wqkv|qkv|q_linear|kv_linear|proj|fc)",
     "PixArt or Hunyuan-DiT"),
    (r"caption_projection|adaln_single|patch_embed[._]proj", "PixArt, Sana or LTX-Video"),
    (r"^(base_model\.model\.|diffusion_model\.|lora_|lycoris_)?(transformer[._])?transformer_blocks[._]\d",
     "a transformer model such as PixArt, CogVideoX or LTX-Video"),
    (r"^(base_model\.model\.|lora_)?transformer[._](?!(h|wte)\.)",
     "a transformer model such as FLUX or Stable Diffusion 3"),
    (r"encoder_hid_proj|[._]add_k_proj[._]lora", "Kandinsky or DeepFloyd IF"),
    (r"^(base_model\.model\.)+(model\.)?(layers|language_model|decoder|transformer\.h|gpt_neox)\.", "a language model"),
))   # fmt: skip

# What no adapter holds → what the file is. The first that fits counts.
_NO_ADAPTERS: tuple[tuple[str, str], ...] = (
    (r"^lora_controlnet$|^lllite_",
     "is a ControlLoRA, which guides a drawing with a picture. Atelier does not support it; use it with ComfyUI or "
     "A1111."),
    (r"^control_model\.|controlnet_(cond_embedding|down_blocks|mid_block)|^zero_convs\.|^input_hint_block\.",
     "is a ControlNet, which guides a drawing with a picture. Atelier does not support it; use it with ComfyUI or "
     "A1111."),
    (r"^(adapter\.)?body\.\d+\.(resnets|in_conv|block)",
     "is a T2I-Adapter, which guides a drawing with a picture. Atelier does not support it; use it with ComfyUI or "
     "A1111."),
    (r"^image_proj\.|^ip_adapter\.|to_k_ip|^id_encoder\.|^pulid_",
     "is an IP-Adapter, which draws in the manner of a picture. Atelier does not support it; use it with ComfyUI or "
     "A1111."),
    (r"^(model\.diffusion_model\.|first_stage_model\.|cond_stage_model\.|conditioner\.embedders\.)",
     "is a whole base model (checkpoint), not an adapter. Put it into a folder with base models and choose it there, "
     "or use it with --base."),
    (r"^(diffusion_model\.)?(double_blocks|joint_blocks|single_blocks|transformer_blocks)\.",
     "is a base model of another architecture, such as FLUX or Stable Diffusion 3. " + _OURS),
    (r"^(vae\.)?(encoder|decoder)\.(down|up|mid|conv_in|conv_out|down_blocks|up_blocks|mid_block)\b|^post_quant_conv\.",
     "is a VAE, the part of a base model that turns latents into pictures, not an adapter."),
    (r"^taesd_|^decoder\.layers\.\d+\.conv", "is a small VAE for previews, not an adapter."),
    (r"^(model\.)?(layers|decoder\.layers|embed_tokens)\.|^lm_head\.|^(transformer\.)?(h|wte)\.|^gpt_neox\.",
     "is a language model, not an adapter for pictures."),
    (r"^(shared|encoder\.block\.\d+\.layer)\.", "is a T5 text encoder, not an adapter."),
    (r"^(vision_model|visual)\.", "is an image encoder (CLIP vision), not an adapter."),
    (r"^(text_model|transformer\.text_model)\.", "is a text encoder, the part of a base model that reads prompts, not "
                                                "an adapter."),
    (r"^(down_blocks|up_blocks|mid_block|conv_in|time_embedding)\b|^(input|output|middle)_blocks?\.",
     "is the UNet of a base model, not an adapter. Use the folder it belongs to with --base."),
    (r"^(conv_first|conv_body|body\.\d+\.rdb\d|model\.\d+\.(weight|sub))", "is an upscaler, not an adapter."),
)   # fmt: skip
_TEXT_WIDTHS = (768, 1024, 1280)


def other_model(keys: Iterable[str]) -> str:
    """What a file is that holds layers of an architecture that is not ours; empty when none is."""
    return _first(_OTHER_MODELS, list(keys))


def what_else(shapes: Mapping[str, Shape]) -> str:
    """What a file is whose tensors make no layer of an adapter."""
    if not shapes:
        return "contains no tensors. Download or copy it again."
    if word := _textual_inversion(shapes):
        return word
    keys = list(shapes)
    if found := _first(_NO_ADAPTERS, [key for key in keys if not _is_adapter_part(key)]) or other_model(keys):
        return found
    if any(key.startswith(("unet:", "text_encoder:")) for key in keys):
        return ("numbers its layers instead of naming them (a format of 2022), in an unknown order. Convert it with "
                "the tool that made it.")
    if any("oft_diag" in key for key in keys):
        return ("contains OFT in a format that LyCORIS dropped in 2023. Convert it with a version of LyCORIS from that "
                "time.")
    return (f"is a safetensors file, but none of its {len(shapes)} tensors is named like one of a Stable Diffusion "
            f"adapter; the first is {keys[0][:80]}.")


def _first(rules: Sequence[tuple[str, str]], keys: Sequence[str]) -> str:
    return next((said for pattern, said in rules if any(map(re.compile(pattern).search, keys))), "")


def _is_adapter_part(key: str) -> bool:
    return re.search(r"lora(?!_controlnet)|lokr|hada|\.alpha$|diff$|oft_|dora_scale", key) is not None


def _textual_inversion(shapes: Mapping[str, Shape]) -> str:
    """What to say of a learned word alone; empty when the file is something else."""
    words = {key: shape for key, shape in shapes.items() if is_learned_word(key, shape)}
    if len(words) < len(shapes):
        return ""
    return ("is a textual inversion (a text embedding), not an adapter. Import it to keep its word in your library.")


def is_learned_word(key: str, shape: Shape) -> bool:
    """Whether a tensor is a textual inversion's: vectors for a text encoder, in any tool's way of naming them."""
    named = re.fullmatch(r"emb_params|clip_[lg]|text_encoders_[01]|bundle_emb\..+|(.*\.)?string_to_param\..+|<.+>", key)
    return bool(named) and 1 <= len(shape) <= 3 and prod(shape) > 0 and (
        shape[-1] in (*_TEXT_WIDTHS, 192) or key.startswith(("bundle_emb.", "<")))   # fmt: skip
