"""How much memory a run will need, counted before it starts.

The run's phases are executed on fake tensors, which have no contents, and every allocation and release is counted as it
would happen. So the estimate follows from the model's code, whatever the family, size, kind and options.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.family import FAMILIES
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.core.weight_only_int8 import quantize_to_int8
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_info import BaseInfo, read_json
from atelier.training.base_models.device import has_own_memory
from atelier.training.base_models.identify import identify
from atelier.training.base_models.offload import MIN_OFFLOAD_BYTES
from atelier.training.base_models.precision import DTYPES
from atelier.training.config.train_config import TrainConfig
from atelier.training.recipes.prior_preservation import prior_batch_size

PROGRAM_BYTES = 650_000_000   # Python with torch, diffusers and transformers loaded, before any model (measured)
CAPTION_TOKENS = 77


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes a run needs on its device at most, and in which phase."""

    weights: int    # of the base model, all parts together
    encode: int     # on top of the weights, while pictures are encoded
    train: int      # on top of the weights, in a step with adapter and optimizer
    draw: int       # on top of the weights, while a preview is drawn
    program: int    # of the process itself, where the device is the main memory
    load: int = 0   # on top of the weights, while they are loaded and not yet quantized to 8 bits
    # The part of the weights that is offloaded (`offload.py`):
    text_encoders: int = 0   # those that are not trained
    vae: int = 0             # needed to encode and to draw, not in a step

    @property
    def peak(self) -> int:
        """The most at any one time."""
        without_text = self.weights - self.text_encoders
        phases = (self.weights + self.load, without_text + self.encode, without_text - self.vae + self.train,
                  without_text + self.draw, self.weights)   # fmt: skip
        return self.program + max(phases)


def estimate_memory(config: TrainConfig, precision: str, *, device: str = "cpu", processes: int = 1) -> MemoryNeed:
    """Count what a run needs with UNet and text encoders in ``precision``; takes seconds, a minute for the largest.

    Where the ``device`` has no memory of its own, the process's own memory counts as well. Where several ``processes``
    share each batch, the estimate is for one of them.

    Raises:
        BaseError: the base model can't be identified.
    """
    info = identify(config.base)
    fields = ("kind", "targets", "train_text_encoder", "resolution", "gradient_checkpointing", "optimizer",
              "ema", "base_in_8_bits")   # fmt: skip
    key = tuple((name, getattr(config, name)) for name in fields)
    pictures = -(-(config.batch + config.prior_batch) // processes)
    need = _counted(info, key, json.dumps(config.adapter), pictures, bool(config.prior_batch), precision)
    if has_own_memory(torch.device(device)):
        return replace(need, program=0, load=0)
    sizes = {name: getattr(need, name) for name in ("text_encoders", "vae")}
    on_disk = {name: size if device == "cpu" and size >= MIN_OFFLOAD_BYTES else 0 for name, size in sizes.items()}
    return replace(need, **on_disk)


@lru_cache(maxsize=64)
def _counted(
    info: BaseInfo, key: tuple[tuple[str, Any], ...], adapter: str, pictures: int, prior: bool, precision: str
) -> MemoryNeed:
    config = TrainConfig(**dict(key), adapter=json.loads(adapter))
    with FakeTensorMode(allow_non_fake_inputs=True), _Counter() as counter:
        parts = _parts(info, DTYPES[precision])
        unquantized = counter.now
        if config.base_in_8_bits:
            quantize_to_int8(parts["unet"])
        weights = counter.now
        side = (config.resolution or info.resolution) // info.size_multiple * info.size_multiple

        def extra_peak(work: Callable[[], object]) -> int:
            before = counter.peak = counter.now
            work()
            return counter.peak - before

        return MemoryNeed(
            weights=weights,
            encode=extra_peak(lambda: _encode(parts["vae"], side)),
            draw=extra_peak(lambda: _draw(parts, info, side, prior)) + _merged_bytes(parts, config),
            train=extra_peak(lambda: _train(parts, info, config, side, pictures)),
            program=PROGRAM_BYTES,
            load=unquantized - weights,
            text_encoders=sum(_bytes(parts[name]) for name in parts if name not in ("vae", *_trained(parts, config))),
            vae=_bytes(parts["vae"]),
        )


class _Counter(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate, until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        size = storage.nbytes()
        self._storages.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size


def _parts(info: BaseInfo, dtype: torch.dtype) -> dict[str, Any]:
    """The base model's parts as fake tensors, from their configurations."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from atelier.training.base_models.less_activation_memory import save_less_for_backward

    def read(name: str) -> dict[str, Any]:
        return read_json(info.folder / name / "config.json", info.source)

    def text(kind: Any, name: str) -> nn.Module:
        return kind(CLIPTextConfig.from_dict(read(name)))

    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_config(read("unet")),
        "text_encoder": text(CLIPTextModel, "text_encoder"),
    }
    if FAMILIES[info.family].two_text_encoders:
        parts["text_encoder_2"] = text(CLIPTextModelWithProjection, "text_encoder_2")
    for part in parts.values():
        _convert(part, dtype)
    parts["vae"] = AutoencoderKL.from_config(read("vae"))
    for part in parts.values():
        part.requires_grad_(False).eval()
    save_less_for_backward(parts["unet"])
    return parts


def _convert(part: nn.Module, dtype: torch.dtype) -> None:
    """The same as ``part.to(dtype)``, which does not work on fake tensors."""
    for module in part.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(value.detach().to(dtype)))


def _bytes(part: nn.Module) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in (*part.parameters(), *part.buffers()))


def _trained(names: Iterable[str], config: TrainConfig) -> list[str]:
    """The parts that adapters change; the others can be offloaded during a step."""
    return [name for name in names if name == "unet" or (config.train_text_encoder and name != "vae")]


def _merged_bytes(parts: Mapping[str, Any], config: TrainConfig) -> int:
    """Bytes of the weights that drawing keeps twice, merged and original; low-precision ones are never merged into."""
    if config.base_in_8_bits or parts["unet"].dtype == torch.bfloat16:
        return 0
    specs = find_targets({name: parts[name] for name in _trained(parts, config)}, config.targets)
    return sum(spec.rows * spec.columns for spec in specs) * parts["unet"].dtype.itemsize


@torch.no_grad()
def _encode(vae: Any, side: int) -> None:
    vae.encode(torch.zeros(1, 3, side, side))


@torch.no_grad()
def _draw(parts: Mapping[str, Any], info: BaseInfo, side: int, prior: bool) -> None:
    if prior:
        _predict(parts["unet"], info, info.resolution, 2 * prior_batch_size(info.resolution))
    _predict(parts["unet"], info, side, 2)   # conditional and unconditional
    vae = parts["vae"]
    vae.decode(torch.zeros(1, vae.config.latent_channels, side // info.vae_scale_factor, side // info.vae_scale_factor))


def _train(parts: Mapping[str, Any], info: BaseInfo, config: TrainConfig, side: int, batch: int) -> None:
    unet = parts["unet"]
    models = {name: parts[name] for name in _trained(parts, config)}
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    adapters = create_adapters(config.kind, config.adapter, find_targets(models, config.targets))
    optimizer = torch.optim.AdamW(adapters.parameters())
    # The averaged copy, and what Prodigy keeps beyond AdamW: the initial values and a running sum.
    copies = bool(config.ema) + 2 * (config.optimizer == "prodigy")
    extra = [parameter.detach().clone() for parameter in adapters.parameters() for _ in range(copies)]
    for parameter in adapters.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()   # allocates its state, which the step to be counted has as well
    optimizer.zero_grad()
    with mount(models, Mix(((adapters, 1.0),))):
        text = None
        if config.train_text_encoder:
            encoders = [part for name, part in models.items() if name != "unet"]
            ids = torch.zeros(batch, encoders[0].config.max_position_embeddings, dtype=torch.long)
            text = torch.cat([encoder(ids).last_hidden_state for encoder in encoders], -1)
        _predict(unet, info, side, batch, text).float().square().mean().backward()
        optimizer.step()
    del extra


def _predict(unet: Any, info: BaseInfo, side: int, batch: int, text: Tensor | None = None) -> Tensor:
    dtype, width = unet.dtype, side // info.vae_scale_factor
    noisy = torch.zeros(batch, unet.config.in_channels, width, width, dtype=dtype)
    if text is None:
        text = torch.zeros(batch, CAPTION_TOKENS, unet.config.cross_attention_dim, dtype=dtype)
    added = None
    if FAMILIES[info.family].two_text_encoders:
        added = {"text_embeds": torch.zeros(batch, 1280, dtype=dtype), "time_ids": torch.zeros(batch, 6, dtype=dtype)}
    timesteps = torch.zeros(batch, dtype=torch.long)
    return unet(noisy, timesteps, text, added_cond_kwargs=added, return_dict=False)[0]
