"""A base model of a family's true size, or with few channels, with random weights made where they are needed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atelier.adapters.core.family import FAMILIES
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.device import has_own_memory
from atelier.training.base_models.fewer_operations import skip_idle_operations
from atelier.training.base_models.less_activation_memory import save_less_for_backward
from atelier.training.base_models.memory_count import empty_parts
from atelier.training.base_models.offload import CpuOffload
from atelier.training.base_models.single_file import MODELS, clip_tokenizer, new_scheduler
from benchmarks.support.interleaved import ROOT

RESOLUTION = {"sd1": 512, "sd2": 512, "sdxl": 1024}
_FOLDERS = {family: MODELS / family for family in RESOLUTION}   # of their configurations


def family_info(family: str) -> BaseInfo:
    """What is known of a family's official model; nothing of it is on the disk but its configurations."""
    return BaseInfo(
        source=family, title=FAMILIES[family].title, family=family, prediction_type="epsilon",
        resolution=RESOLUTION[family], vae_scale_factor=8, size_multiple=64, channels=320, folder=_FOLDERS[family],
        caption="a photo of {trigger} {subject}",
    )   # fmt: skip


def random_base(family: str, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """A whole model on a device; its text encoders and its VAE can be offloaded."""
    info = family_info(family)
    parts: dict[str, Any] = {name: _filled(part, device) for name, part in empty_parts(info, dtype).items()}
    tokenizers = {one.tokenizer: clip_tokenizer(one.pad_token) for one in FAMILIES[family].text_encoders}
    save_less_for_backward(parts["unet"])
    skip_idle_operations(parts["unet"])
    offload = CpuOffload() if has_own_memory(device) else None
    return BaseModel(info, **parts, **tokenizers, scheduler=new_scheduler(info), offload_to=offload, home=device)


@torch.no_grad()
def _filled(part: nn.Module, device: torch.device) -> nn.Module:
    """Weights from the meta device as random numbers, so small that nothing overflows."""
    part.to_empty(device=device)
    for name, parameter in part.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(float("norm" in name and name.endswith("weight")))
    for name, buffer in part.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]))
    return part


@contextmanager
def few_channels() -> Iterator[None]:
    """Models are made with few channels while this is open: to see that something runs, not how fast."""
    sys.path.insert(0, str(ROOT / "tests"))
    import families

    before = dict(_FOLDERS)
    with tempfile.TemporaryDirectory() as folder:
        for family in _FOLDERS:
            (Path(folder) / family).mkdir()
            _FOLDERS[family] = families.write_configurations(Path(folder) / family, family) / family
        try:
            yield
        finally:
            _FOLDERS.update(before)
