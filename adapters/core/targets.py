"""Which modules of a base model an adapter changes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from atelier.adapters.core.base import Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.weight_only_int8 import weight_shape

# What each named choice covers, as endings of diffusers' module names. Every choice keeps the cross-attention
# keys and values, because other tools tell the base model's family from their width.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "transformer": _TRANSFORMER,
    "all": (*_TRANSFORMER, *_CONVOLUTION),
}


def find_targets(models: Mapping[str, nn.Module], choice: str) -> list[Spec]:
    """List the target modules of ``models`` (component name → model), in the models' own order.

    Text encoders are covered whole whenever they are passed; ``choice`` names the layers of the UNet.

    Raises:
        SettingError: an unknown choice, or no module matches.
    """
    if choice not in TARGETS:
        raise SettingError(f"targets is {choice!r}, but it must be one of: {', '.join(TARGETS)}.")
    specs = [
        Spec(f"{component}.{name}", weight_shape(module))
        for component, model in models.items()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name.endswith(_TEXT if component.startswith("text_encoder") else TARGETS[choice])
    ]
    if not specs:
        raise SettingError(f"No layer of {', '.join(models)} matches the targets {choice!r}.")
    return specs


# Endings of roles whose modules take in what heads or hidden units gave, and hand it back to the stream.
_HAND_BACK = ("to_out", "out_proj", "ff.net", "fc2")


def role(name: str) -> str:
    """What a module is for, the same in every block: the last two words of its name, numbers left out.

    >>> role("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0")
    'attn1.to_out'
    """
    return ".".join([part for part in name.split(".") if not part.isdigit()][-2:])


def is_output_projection(name: str) -> bool:
    """Whether a module's *inputs* are heads or hidden units, as of an attention's ``to_out``."""
    return role(name).endswith(_HAND_BACK)
