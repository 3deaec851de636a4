"""How much memory a drawing will need, counted before it starts, and the savings that make it fit.

UNet and VAE run on fake tensors, which have no contents, and every allocation is counted: a few seconds for each size
of picture, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch

from atelier.adapters.attach.merge import DENSE_CACHE_BYTES
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.weight_only_int8 import quantize_to_int8
from atelier.training.base_models.base_info import PACKED_UNET, BaseError, BaseInfo
from atelier.training.base_models.device import available_memory
from atelier.training.base_models.memory_count import counting, empty_parts, module_bytes, predict_zeros
from atelier.training.sampling.decode import use_tiles
from atelier.training.sampling.draw_savings import DrawSavings, describe_draw_savings, next_draw_saving
from atelier.training.sampling.sample import DrawRequest

LARGE_ENOUGH = 512   # pixels a side, from which on what does not grow with a picture is small
PLENTY = 60   # times the base's size on disk: more than any drawing of four pictures needs


@dataclass(frozen=True, slots=True)
class DrawNeed:
    """Bytes a drawing needs on its device."""

    unet: int            # weights
    text_encoders: int
    vae: int
    adapters: int        # their tensors, and what they are turned into for the UNet
    merged: int          # the second copy of the weights they change
    denoise: int         # on top of the weights, in a call of the UNet
    decode: int          # on top of the weights, in a call of the VAE, which also encodes a picture to start from
    offload: bool        # text encoders and VAE are there only when they work

    @property
    def peak(self) -> int:
        """The most at any one time."""
        base = self.unet + self.adapters + self.merged
        if not self.offload:
            return base + self.text_encoders + self.vae + max(self.denoise, self.decode)
        return base + max(self.text_encoders, self.denoise, self.vae + self.decode)


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """How a drawing gets along with the memory here."""

    savings: DrawSavings
    needed: int      # bytes without savings
    available: int   # bytes

    @property
    def notice(self) -> str:
        """What a person should know of it; empty where there are no savings."""
        if not (words := describe_draw_savings(self.savings)):
            return ""
        return (f"This drawing needs about {format_bytes(self.needed)} of memory, and {format_bytes(self.available)} "
                f"is free. To fit, {words}.")


def plan_drawing(
    info: BaseInfo, request: DrawRequest, adapters: Sequence[AdapterSet], dtype: torch.dtype, device: torch.device,
    held: int = 0, *, from_picture: bool = False,
) -> DrawPlan:   # fmt: skip
    """Choose the savings a drawing needs here: as few as fit.

    Args:
        info: the base model.
        request: what to draw.
        adapters: those that act.
        dtype: of UNet and text encoders.
        device: where it is drawn.
        held: bytes that are taken now and count as free, such as those of the base model that is loaded.
        from_picture: whether the VAE encodes a picture to start from.

    Raises:
        BaseError: it does not fit even with all savings; says what is needed and what is available.
    """
    def peak(savings: DrawSavings) -> int:
        """Bytes that the drawing needs at most with these savings."""
        return estimate_drawing(info, request, adapters, dtype, savings, from_picture=from_picture).peak

    available, chosen = available_memory(device) + held, DrawSavings()
    ordinary = request.count <= 4 and max(draw_size(info, request)) <= info.resolution
    if info.bytes and ordinary and PLENTY * info.bytes < available:
        return DrawPlan(chosen, 0, available)
    while peak(chosen) > available:
        if (more := next_draw_saving(chosen, device)) is None:
            raise BaseError(f"Drawing this needs about {format_bytes(peak(chosen))} of memory even with every memory "
                            f"saving, but only {format_bytes(available)} is free. Close other programs, or choose "
                            "smaller or fewer pictures.")
        chosen = more
    chosen = _without_needless(chosen, lambda savings: peak(savings) <= available)
    return DrawPlan(chosen, peak(DrawSavings()), available)


def _without_needless(savings: DrawSavings, fits: Callable[[DrawSavings], bool]) -> DrawSavings:
    """The same without what a later saving has made needless, the costliest first."""
    for name in reversed([field.name for field in fields(savings)]):
        if getattr(savings, name) and fits(without := replace(savings, **{name: False})):
            savings = without
    return savings


def estimate_drawing(
    info: BaseInfo, request: DrawRequest, adapters: Sequence[AdapterSet], dtype: torch.dtype, savings: DrawSavings,
    *, from_picture: bool = False,
) -> DrawNeed:   # fmt: skip
    """Count what a drawing needs with some savings; the first time for a size of picture it takes a second or two.

    Raises:
        BaseError: the base model can't be used.
    """
    size = draw_size(info, request)
    batch = request.count * (2 if request.guidance > 1 else 1)
    unet, per_pixel = _unet_bytes(info, dtype)
    denoise = int(per_pixel * size[0] * size[1] * batch)
    if savings.in_8_bits:
        unet, layer = _bytes_in_8_bits(info, dtype)
        denoise += layer   # whose weight is made for its call
    merges = not savings.mount and not savings.in_8_bits and dtype != torch.bfloat16
    if not merges and (savings.in_8_bits or not all(type(one).is_low_rank() for each in adapters for one in each)):
        denoise *= 2 if adapters else 1   # a layer's output, its update and their sum are there at once
    vae, decode = _vae_bytes(info, size, savings.half_vae, savings.tiles)
    decode = decode if savings.decode_singly else decode * request.count
    if from_picture or (request.upscale > 1 and request.upscaler == "lanczos"):
        decode = max(decode, _encode_bytes(info, size, savings.tiles))
    own = sum(module_bytes(each) for each in adapters)
    return DrawNeed(
        unet=unet, text_encoders=_text_bytes(info, dtype), vae=vae, denoise=denoise, decode=decode,
        adapters=2 * own if merges else own + own * dtype.itemsize // 4,
        merged=_merged_bytes(adapters, dtype) if merges else 0, offload=savings.offload,
    )   # fmt: skip


def draw_size(info: BaseInfo, request: DrawRequest) -> tuple[int, int]:
    """Width and height of the largest picture that a drawing computes with, in pixels."""
    sides = (request.width or info.resolution, request.height or info.resolution)
    width, height = (int(side * request.upscale) // info.size_multiple * info.size_multiple for side in sides)
    return width, height


def _merged_bytes(adapters: Sequence[AdapterSet], dtype: torch.dtype) -> int:
    """The copy of all weights that change, the largest of them in float32 on the way, and dense updates kept."""
    sizes = {spec.name: spec.rows * spec.columns for each in adapters for spec in each.specs}
    dense = sum(4 * spec.rows * spec.columns for each in adapters for one in each if not type(one).is_low_rank()
                for spec in (one.spec,))   # fmt: skip
    return dtype.itemsize * sum(sizes.values()) + 8 * max(sizes.values(), default=0) + min(dense, DENSE_CACHE_BYTES)


@lru_cache(maxsize=16)
def _unet_bytes(info: BaseInfo, dtype: torch.dtype) -> tuple[int, float]:
    """Bytes of the weights, and of the activations for each pixel of a picture: with any size they grow alike."""
    unet: Any = empty_parts(info, dtype)["unet"]
    with counting(unet) as counter, torch.no_grad():
        packed = info.folder / "unet" / PACKED_UNET
        weights = packed.stat().st_size if packed.exists() else module_bytes(unet)
        side = max(info.resolution, LARGE_ENOUGH)
        return weights, counter.extra_peak(lambda: predict_zeros(unet, info, (side, side), 2)) / (2 * side**2)


@lru_cache(maxsize=16)
def _bytes_in_8_bits(info: BaseInfo, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a UNet in 8 bits, and of its largest layer's weight as it is computed with."""
    unet: Any = empty_parts(info, dtype)["unet"]
    largest = max(parameter.nbytes for parameter in unet.parameters())
    quantize_to_int8(unet)
    return module_bytes(unet), largest


@lru_cache(maxsize=64)
def _vae_bytes(info: BaseInfo, size: tuple[int, int], half: bool, tiles: bool) -> tuple[int, int]:
    """The same of the VAE that decodes one picture."""
    dtype = torch.bfloat16 if half else torch.float32
    vae: Any = torch.nn.Module.to(empty_parts(info, torch.float32)["vae"], dtype)
    with counting(vae) as counter, torch.no_grad():
        side = (1, vae.config.latent_channels, *(length // info.vae_scale_factor for length in reversed(size)))
        latents = torch.zeros(side, dtype=dtype)
        with use_tiles(vae, info, tiles):
            return module_bytes(vae), counter.extra_peak(lambda: vae.decode(latents))


@lru_cache(maxsize=64)
def _encode_bytes(info: BaseInfo, size: tuple[int, int], tiles: bool) -> int:
    """Bytes on top of the weights of a VAE that encodes one picture."""
    vae: Any = empty_parts(info, torch.float32)["vae"]
    with counting(vae) as counter, torch.no_grad(), use_tiles(vae, info, tiles):
        picture = torch.zeros(1, 3, *reversed(size))
        return counter.extra_peak(lambda: vae.encode(picture))


@lru_cache(maxsize=64)
def _text_bytes(info: BaseInfo, dtype: torch.dtype) -> int:
    parts = empty_parts(info, dtype)
    return sum(module_bytes(part) for name, part in parts.items() if name.startswith("text_encoder"))
