"""The blocks of a Stable Diffusion UNet, by the names of their layers: strengths can differ from block to block.

Names follow the order of the forward pass: ``down.1.0`` is the first unit of the second level down, a residual block or
it and a transformer; ``mid`` the middle; ``up.2.1`` the second unit of the third level up. ``down.0.sampler`` changes
the size.
``text`` is every layer of the text encoders, ``outer`` what stands around the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from atelier.adapters.core.base import AdapterSet

MAX_BLOCK_STRENGTH = 4.0
_UNIT = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)\b")
_SIDES = ("text", "outer", "down", "mid", "up")


def block_of(layer: str) -> str:
    """The block that a layer belongs to.

    >>> block_of("unet.up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k"), block_of("unet.conv_in")
    ('up.2.1', 'outer')
    >>> block_of("unet.down_blocks.0.downsamplers.0.conv"), block_of("text_encoder.encoder.layers.0.fc1")
    ('down.0.sampler', 'text')
    """
    if found := _UNIT.match(layer):
        side, level, part, unit = found.groups()
        return f"{side}.{level}.{'sampler' if part.endswith('samplers') else unit}"
    if layer.startswith("unet.mid_block."):
        return "mid"
    return "outer" if layer.startswith("unet.") else "text"


def blocks_of(layers: Iterable[str]) -> list[str]:
    """The blocks of some layers, in the order of the forward pass.

    >>> blocks_of(["unet.mid_block.attentions.0.proj_in", "unet.down_blocks.1.downsamplers.0.conv", "text_encoder.a"])
    ['text', 'down.1.sampler', 'mid']
    """
    def place(block: str) -> tuple[int, str, str]:
        """Where it stands in the forward pass."""
        side, _, rest = block.partition(".")
        level, _, unit = rest.partition(".")
        return _SIDES.index(side), level, unit   # digits stand before "sampler"

    return sorted({block_of(layer) for layer in layers}, key=place)


def scale_blocks(adapters: AdapterSet, strengths: Mapping[str, float]) -> AdapterSet:
    """The same adapters with the update of each block multiplied; blocks that are not named stay as they are."""
    return adapters.scale_layers({layer: strengths[block] for layer in (spec.name for spec in adapters.specs)
                                  if (block := block_of(layer)) in strengths})   # fmt: skip
