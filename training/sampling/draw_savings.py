"""What a drawing can do to need less memory, in the order of what it costs: first only time, last exactness."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from atelier.training.base_models.device import has_own_memory

TILE = 512   # pixels a side; the VAE blends the edges of neighbouring tiles
_WORDS = {
    "decode_singly": "pictures are decoded one at a time",
    "tiles": f"they are decoded in tiles of {TILE} pixels",
    "half_vae": "the VAE decodes in bfloat16",
    "offload": "text encoders and VAE wait in main memory while the UNet works",
    "mount": "adapters act at every step instead of being merged, which takes longer",
    "in_8_bits": "the UNet's weights are stored in 8 bits, which is a little less exact",
}


@dataclass(frozen=True, slots=True)
class DrawSavings:
    """Memory savings of a drawing; each is there as soon as the one before it does not suffice."""

    decode_singly: bool = False   # the VAE decodes one picture at a time
    tiles: bool = False           # in tiles
    half_vae: bool = False        # in bfloat16
    offload: bool = False         # text encoders and VAE are in main memory while the UNet denoises
    mount: bool = False           # adapters are mounted, where merging would copy the weights
    in_8_bits: bool = False       # of the UNet's weights


def next_draw_saving(savings: DrawSavings, device: torch.device) -> DrawSavings | None:
    """The savings with one more; None when there is none left that helps on this device."""
    for name in (field.name for field in fields(DrawSavings)):
        if not getattr(savings, name) and _helps(name, device):
            return replace(savings, **{name: True})
    return None


def _helps(name: str, device: torch.device) -> bool:
    """Offloading frees a memory that the parts would otherwise share; bfloat16 is slow where it is emulated."""
    if name == "half_vae":
        return has_own_memory(device) and torch.get_device_module(device).is_bf16_supported(including_emulation=False)
    return name != "offload" or has_own_memory(device)


def describe_draw_savings(savings: DrawSavings) -> str:
    """The savings in words, for a sentence."""
    return "; ".join(words for name, words in _WORDS.items() if getattr(savings, name))
