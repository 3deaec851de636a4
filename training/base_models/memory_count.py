"""Counting memory without using any: a base model's parts without weights, and the bytes that operations allocate."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atelier.adapters.core.family import FAMILIES
from atelier.kernels.torch_internals import OperationObserver, fake_tensors, tensors_in
from atelier.training.base_models.base_info import BaseInfo, read_json

CAPTION_TOKENS = 77


class AllocationCounter(OperationObserver):
    """Counts the bytes of all storages that operations allocate, until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    def observe(self, result: Any) -> None:
        """Count the storages that an operation allocated."""
        for tensor in tensors_in(result):
            self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        size = storage.nbytes()
        self._storages.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def extra_peak(self, work: Callable[[], object]) -> int:
        """Bytes that some work allocates at most, on top of what is there before it."""
        before = self.peak = self.now
        work()
        return self.peak - before

    def _release(self, size: int) -> None:
        self.now -= size


@contextmanager
def counting(*parts: nn.Module) -> Iterator[AllocationCounter]:
    """Count while this is open, and give parts of the meta device their weights: fake tensors of the CPU.

    The meta device itself knows no autocast, which adapters ask for, and no attention that saves memory.
    """
    with fake_tensors(), AllocationCounter() as counter:
        for part in parts:
            _materialize(part)
        yield counter


def _materialize(part: nn.Module) -> None:
    """What ``part.to_empty(device="cpu")`` does, which may swap tensors: fake ones can't be."""
    for module in part.modules():
        for name, value in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(torch.empty_like(value, device="cpu"), requires_grad=False))
        for name, value in [*module.named_buffers(recurse=False)]:
            setattr(module, name, torch.empty_like(value, device="cpu"))


def empty_parts(info: BaseInfo, dtype: torch.dtype) -> dict[str, Any]:
    """A base model's parts on the meta device: UNet and text encoders in ``dtype``, the VAE in float32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from atelier.training.base_models.fewer_operations import skip_idle_operations

    def read(name: str) -> dict[str, Any]:
        """A component's ``config.json``."""
        return read_json(info.folder / name / "config.json", info.source)

    def text(kind: Any, name: str) -> nn.Module:
        """A text encoder of the configuration in a component's folder."""
        return kind(CLIPTextConfig.from_dict(read(name)))

    with torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(read("unet")),
            "text_encoder": text(CLIPTextModel, "text_encoder"),
        }
        if FAMILIES[info.family].two_text_encoders:
            parts["text_encoder_2"] = text(CLIPTextModelWithProjection, "text_encoder_2")
        for part in parts.values():
            nn.Module.to(part, dtype)   # not diffusers' own, which warns of nothing
        parts["vae"] = AutoencoderKL.from_config(read("vae"))
    skip_idle_operations(parts["unet"])
    for part in parts.values():
        part.requires_grad_(False).eval()
    return parts


def module_bytes(part: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(tensor.untyped_storage().nbytes() for tensor in (*part.parameters(), *part.buffers()))


def predict_zeros(
    unet: Any, info: BaseInfo, size: tuple[int, int], batch: int, text: Tensor | None = None
) -> Tensor:
    """A UNet's prediction for pictures of ``size`` (width, height) in pixels, all of them zeros."""
    dtype, (width, height) = unet.dtype, (length // info.vae_scale_factor for length in size)
    noisy = torch.zeros(batch, unet.config.in_channels, height, width, dtype=dtype)
    if text is None:
        text = torch.zeros(batch, CAPTION_TOKENS, unet.config.cross_attention_dim, dtype=dtype)
    added = None
    if FAMILIES[info.family].two_text_encoders:
        added = {"text_embeds": torch.zeros(batch, 1280, dtype=dtype), "time_ids": torch.zeros(batch, 6, dtype=dtype)}
    timesteps = torch.zeros(batch, dtype=torch.long)
    return unet(noisy, timesteps, text, added_cond_kwargs=added, return_dict=False)[0]
