"""What a file is that is no adapter Atelier can use, told from the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from atelier.adapters.formats.layer_shapes import Shape

# Part of a tensor name → what the file is that has it.
_OTHERS = {
    "emb_params": "is a textual inversion: a learned word, not an adapter",
    "string_to_param": "is a textual inversion: a learned word, not an adapter",
    "clip_l": "is a textual inversion for Stable Diffusion XL: a learned word, not an adapter",
    "oft_blocks": "is an OFT adapter, which rotates the weights instead of adding to them. Atelier does not support it",
    "double_blocks": "is an adapter for FLUX. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "single_transformer_blocks": "is an adapter for FLUX. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "joint_blocks": "is an adapter for Stable Diffusion 3. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "transformer.transformer_blocks": "is an adapter for a transformer model such as Stable Diffusion 3 or FLUX. "
                                      "Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "cross_attn": "is an adapter for a video model. Atelier works with Stable Diffusion 1.x, 2.x and XL",
    "first_stage_model": "is a whole base model, not an adapter. Use it with --base",
    "model.diffusion_model.": "is a base model, not an adapter. Use it with --base",
    "control_model": "is a ControlNet, not an adapter",
}   # fmt: skip


def what_else(shapes: Mapping[str, Shape]) -> str:
    """What a file is whose tensors make no layer of an adapter, as the end of a sentence that begins with its name."""
    if not shapes:
        return "contains no tensors"
    for part, what in _OTHERS.items():
        if any(part in key for key in shapes):
            return what
    if any(key.startswith(("unet:", "text_encoder:")) for key in shapes):
        return ("numbers its layers instead of naming them (a format of 2022), in an unknown order. Convert it with "
                "the tool that made it")
    return (f"is a safetensors file, but none of its {len(shapes)} tensors is named like one of a Stable Diffusion "
            f"adapter; the first is {next(iter(shapes))}")
