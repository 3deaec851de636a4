"""How much memory a run will need, counted before it starts.

The run's own phases are carried out on tensors without contents, and every allocation and release is counted as it
would happen. So the figure follows from the model's code, whatever the family, size, kind and options.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from atelier.adapters.catalog import create
from atelier.adapters.mix import Mix
from atelier.adapters.mount import mounted
from atelier.adapters.targets import find_targets

from .base_info import BaseError, BaseInfo, read_json
from .config import TrainConfig
from .identify import identify
from .precision import DTYPES

PROGRAM_BYTES = 650_000_000   # Python with torch, diffusers and transformers loaded, before any model (measured)
RESERVE = 0.05                # of the device, for what fragments and for the desktop
CAPTION = 77
PER_MODEL, PER_PICTURE = 8, 2   # more than any run needs, in sizes of the base on disk: about 4 times what was counted


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes a run needs on its device at most, and in which phase."""

    weights: int    # of the base model, all the time
    encode: int     # beside them while pictures become latents
    train: int      # beside them in a step, adapter and optimizer included
    draw: int       # beside them while a preview is drawn
    program: int    # of the process itself, where the device is the main memory

    @property
    def peak(self) -> int:
        """The most at any one time."""
        return self.program + self.weights + max(self.encode, self.train, self.draw)


def need(config: TrainConfig, precision: str, *, main_memory: bool = True) -> Need:
    """Count what a run needs with UNet and text encoders in ``precision``, in a few seconds.

    With ``main_memory`` the device shares the process's memory, as a CPU does.

    Raises:
        BaseError: the base model can't be identified.
    """
    info = identify(config.base)
    facts = ("kind", "targets", "train_text_encoder", "batch", "resolution", "gradient_checkpointing", "optimizer",
             "ema")   # fmt: skip
    key = tuple((name, getattr(config, name)) for name in facts)
    return _counted(info, key, json.dumps(config.adapter), config.prior_batch, precision, main_memory)


def available(device: torch.device) -> int:
    """Bytes that a run may use on a device now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free - RESERVE * total)
    memory = psutil.virtual_memory()
    return int(memory.available - RESERVE * memory.total)


def cheaper(config: TrainConfig) -> TrainConfig | None:
    """The same run with less memory and more time: the next lever, or None when there is none left.

    Checkpointing computes the UNet's blocks a second time instead of keeping what is in them. Half the batch, taken
    twice as often, gives the same mean gradient.
    """
    if not config.gradient_checkpointing:
        return replace(config, gradient_checkpointing=True)
    if config.batch > 1:
        return replace(config, batch=config.batch // 2, accumulate=config.accumulate * 2)
    return None


def fitting(config: TrainConfig, precision: str, device: torch.device) -> tuple[TrainConfig, str]:
    """The run itself where it fits; else with as many levers as it takes, and what to tell about them.

    Raises:
        BaseError: it does not fit even with all of them; says what is needed and what there is.
    """
    room, info = available(device), identify(config.base)
    pictures = (config.batch + config.prior_batch) * max(1.0, config.resolution / info.resolution) ** 2
    if PROGRAM_BYTES + info.bytes * (PER_MODEL + PER_PICTURE * pictures) < room:
        return config, ""   # by far: not worth the seconds of counting
    chosen: TrainConfig | None = config
    counted = first = need(config, precision, main_memory=device.type == "cpu").peak
    while chosen is not None and counted > room:
        chosen = cheaper(chosen)
        counted = need(chosen, precision, main_memory=device.type == "cpu").peak if chosen else counted
    if chosen is None:
        raise BaseError(f"Teaching this base model needs about {counted / 1e9:.1f} GB of memory even in the most "
                        f"sparing way, and {room / 1e9:.1f} GB are free. Close other programs, or choose a smaller "
                        "resolution or base model.")
    if chosen == config:
        return config, ""
    return chosen, (f"It would need about {first / 1e9:.1f} GB of memory, and {room / 1e9:.1f} GB are free: "
                    f"{levers(config, chosen)}.")


def levers(config: TrainConfig, chosen: TrainConfig) -> str:
    """What one run does to need less memory than another, in words."""
    said = []
    if chosen.gradient_checkpointing and not config.gradient_checkpointing:
        said.append("the UNet's blocks are computed twice instead of kept, which takes about a third longer")
    if chosen.batch < config.batch:
        said.append(f"{chosen.batch} pictures are taken at once instead of {config.batch}, and more often")
    return "; ".join(said)


@lru_cache(maxsize=64)
def _counted(
    info: BaseInfo, key: tuple[tuple[str, Any], ...], adapter: str, prior: int, precision: str, main_memory: bool
) -> Need:
    config = TrainConfig(**dict(key), adapter=json.loads(adapter))
    with FakeTensorMode(allow_non_fake_inputs=True), _Counter() as counter:
        parts = _parts(info, DTYPES[precision])
        weights = counter.now
        side = (config.resolution or info.resolution) // info.multiple * info.multiple

        def beside(work: Callable[[], object]) -> int:
            before = counter.peak = counter.now
            work()
            return counter.peak - before

        return Need(
            weights=weights,
            encode=beside(lambda: _encode(parts["vae"], side)),
            draw=beside(lambda: _draw(parts, info, side)),
            train=beside(lambda: _train(parts, info, config, side, config.batch + prior)),
            program=PROGRAM_BYTES if main_memory else 0,
        )


class _Counter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size


def _parts(info: BaseInfo, dtype: torch.dtype) -> dict[str, Any]:
    """The base model's parts without contents, from their configurations."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def read(name: str) -> dict[str, Any]:
        return read_json(info.folder / name / "config.json", info.source)

    def text(kind: Any, name: str) -> nn.Module:
        return kind(CLIPTextConfig.from_dict(read(name)))

    parts: dict[str, Any] = {"vae": AutoencoderKL.from_config(read("vae"))}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)   # tensors without contents can't be converted afterwards
    try:
        parts["unet"] = UNet2DConditionModel.from_config(read("unet"))
        parts["text_encoder"] = text(CLIPTextModel, "text_encoder")
        if info.family == "sdxl":
            parts["text_encoder_2"] = text(CLIPTextModelWithProjection, "text_encoder_2")
    finally:
        torch.set_default_dtype(before)
    for part in parts.values():
        part.requires_grad_(False).eval()
    return parts


@torch.no_grad()
def _encode(vae: Any, side: int) -> None:
    vae.encode(torch.zeros(1, 3, side, side))


@torch.no_grad()
def _draw(parts: Mapping[str, Any], info: BaseInfo, side: int) -> None:
    _ask(parts["unet"], info, side, 2)   # with words and without
    vae = parts["vae"]
    vae.decode(torch.zeros(1, vae.config.latent_channels, side // info.factor, side // info.factor))


def _train(parts: Mapping[str, Any], info: BaseInfo, config: TrainConfig, side: int, batch: int) -> None:
    unet = parts["unet"]
    models = {name: part for name, part in parts.items()
              if name == "unet" or (config.train_text_encoder and name != "vae")}   # fmt: skip
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    adapters = create(config.kind, config.adapter, find_targets(models, config.targets))
    optimizer = torch.optim.AdamW(adapters.parameters())
    # The averaged copy, and what Prodigy keeps beyond AdamW: where it began and a running sum.
    copies = bool(config.ema) + 2 * (config.optimizer == "prodigy")
    kept = [parameter.detach().clone() for parameter in adapters.parameters() for _ in range(copies)]
    with mounted(models, Mix(((adapters, 1.0),))):
        for _ in range(2):   # the optimizer's state is there from the second step on
            text = None
            if config.train_text_encoder:
                ids = torch.zeros(batch, CAPTION, dtype=torch.long)
                text = torch.cat([models[name](ids).last_hidden_state for name in models if name != "unet"], -1)
            _ask(unet, info, side, batch, text).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    del kept


def _ask(unet: Any, info: BaseInfo, side: int, batch: int, text: Tensor | None = None) -> Tensor:
    dtype, width = unet.dtype, side // info.factor
    noisy = torch.zeros(batch, unet.config.in_channels, width, width, dtype=dtype)
    if text is None:
        text = torch.zeros(batch, CAPTION, unet.config.cross_attention_dim, dtype=dtype)
    added = None
    if info.family == "sdxl":
        added = {"text_embeds": torch.zeros(batch, 1280, dtype=dtype), "time_ids": torch.zeros(batch, 6, dtype=dtype)}
    timesteps = torch.zeros(batch, dtype=torch.long)
    return unet(noisy, timesteps, text, added_cond_kwargs=added, return_dict=False)[0]
