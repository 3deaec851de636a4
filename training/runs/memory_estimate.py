"""How much memory a run will need, counted before it starts.

The run's own phases are carried out on tensors without contents, and every allocation and release is counted as it
would happen. So the figure follows from the model's code, whatever the family, size, kind and options.
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
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.core.weight_only_int8 import quantize_to_int8
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_info import BaseInfo, read_json
from atelier.training.base_models.identify import identify
from atelier.training.base_models.offload import MIN_OFFLOAD_BYTES
from atelier.training.base_models.precision import DTYPES
from atelier.training.config.train_config import TrainConfig
from atelier.training.recipes.prior_preservation import prior_batch_size

PROGRAM_BYTES = 650_000_000   # Python with torch, diffusers and transformers loaded, before any model (measured)
CAPTION = 77


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes a run needs on its device at most, and in which phase."""

    weights: int    # of the base model, all parts together
    encode: int     # beside them while pictures become latents
    train: int      # beside them in a step, adapter and optimizer included
    draw: int       # beside them while a preview is drawn
    program: int    # of the process itself, where the device is the main memory
    load: int = 0   # beside them while they are loaded, before they are put into 8 bits
    # Of the weights, what waits elsewhere (`offload.py`):
    texts: int = 0  # text encoders that only encode captions and prompts
    vae: int = 0    # needed to encode and to draw, not in a step

    @property
    def peak(self) -> int:
        """The most at any one time."""
        phases = (self.load, self.encode - self.texts, self.train - self.texts - self.vae, self.draw - self.texts)
        return self.program + self.weights + max(0, *phases)


def need(config: TrainConfig, precision: str, *, device: str = "cpu", processes: int = 1) -> Need:
    """Count what a run needs with UNet and text encoders in ``precision``: seconds, up to a minute for the largest.

    What is needed on the type of ``device``: on all but "cuda" the process's own memory is the same. The figure is one
    process's where several share each batch.

    Raises:
        BaseError: the base model can't be identified.
    """
    info = identify(config.base)
    facts = ("kind", "targets", "train_text_encoder", "resolution", "gradient_checkpointing", "optimizer",
             "ema", "base_in_8_bits")   # fmt: skip
    key = tuple((name, getattr(config, name)) for name in facts)
    pictures = -(-(config.batch + config.prior_batch) // processes)
    counted = _counted(info, key, json.dumps(config.adapter), pictures, bool(config.prior_batch), precision)
    if device == "cuda":
        return replace(counted, program=0, load=0)
    waits = {name: size for name in ("texts", "vae") if (size := getattr(counted, name)) >= MIN_OFFLOAD_BYTES}
    return replace(counted, **{"texts": 0, "vae": 0} | (waits if device == "cpu" else {}))


@lru_cache(maxsize=64)
def _counted(
    info: BaseInfo, key: tuple[tuple[str, Any], ...], adapter: str, pictures: int, prior: bool, precision: str
) -> Need:
    config = TrainConfig(**dict(key), adapter=json.loads(adapter))
    with FakeTensorMode(allow_non_fake_inputs=True), _Counter() as counter:
        parts = _parts(info, DTYPES[precision])
        whole = counter.now
        if config.base_in_8_bits:
            quantize_to_int8(parts["unet"])
        weights = counter.now
        side = (config.resolution or info.resolution) // info.multiple * info.multiple

        def beside(work: Callable[[], object]) -> int:
            before = counter.peak = counter.now
            work()
            return counter.peak - before

        return Need(
            weights=weights,
            encode=beside(lambda: _encode(parts["vae"], side)),
            draw=beside(lambda: _draw(parts, info, side, prior)) + _merged(parts, config),
            train=beside(lambda: _train(parts, info, config, side, pictures)),
            program=PROGRAM_BYTES,
            load=whole - weights,
            texts=sum(_bytes(part) for name, part in parts.items() if name not in ("vae", *_trained(parts, config))),
            vae=_bytes(parts["vae"]),
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

    from atelier.training.base_models.less_activation_memory import save_less_for_backward

    def read(name: str) -> dict[str, Any]:
        return read_json(info.folder / name / "config.json", info.source)

    def text(kind: Any, name: str) -> nn.Module:
        return kind(CLIPTextConfig.from_dict(read(name)))

    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_config(read("unet")),
        "text_encoder": text(CLIPTextModel, "text_encoder"),
    }
    if info.family == "sdxl":
        parts["text_encoder_2"] = text(CLIPTextModelWithProjection, "text_encoder_2")
    for part in parts.values():
        _convert(part, dtype)
    parts["vae"] = AutoencoderKL.from_config(read("vae"))
    for part in parts.values():
        part.requires_grad_(False).eval()
    save_less_for_backward(parts["unet"])
    return parts


def _convert(part: nn.Module, dtype: torch.dtype) -> None:
    """What ``part.to(dtype)`` does, which can't be done to tensors without contents."""
    for module in part.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(value.detach().to(dtype)))


def _bytes(part: nn.Module) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in (*part.parameters(), *part.buffers()))


def _trained(names: Iterable[str], config: TrainConfig) -> list[str]:
    """The parts that adapters change; the others can wait elsewhere while a step is computed."""
    return [name for name in names if name == "unet" or (config.train_text_encoder and name != "vae")]


def _merged(parts: Mapping[str, Any], config: TrainConfig) -> int:
    """Bytes of the weights that drawing keeps twice, merged and as they were; coarse ones are never merged into."""
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
        _ask(parts["unet"], info, info.resolution, 2 * prior_batch_size(info.resolution))
    _ask(parts["unet"], info, side, 2)   # with words and without
    vae = parts["vae"]
    vae.decode(torch.zeros(1, vae.config.latent_channels, side // info.factor, side // info.factor))


def _train(parts: Mapping[str, Any], info: BaseInfo, config: TrainConfig, side: int, batch: int) -> None:
    unet = parts["unet"]
    models = {name: parts[name] for name in _trained(parts, config)}
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    adapters = create_adapters(config.kind, config.adapter, find_targets(models, config.targets))
    optimizer = torch.optim.AdamW(adapters.parameters())
    # The averaged copy, and what Prodigy keeps beyond AdamW: where it began and a running sum.
    copies = bool(config.ema) + 2 * (config.optimizer == "prodigy")
    kept = [parameter.detach().clone() for parameter in adapters.parameters() for _ in range(copies)]
    for parameter in adapters.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()   # its state is there from the second step on: that is the one to count
    optimizer.zero_grad()
    with mount(models, Mix(((adapters, 1.0),))):
        text = None
        if config.train_text_encoder:
            encoders = [part for name, part in models.items() if name != "unet"]
            ids = torch.zeros(batch, encoders[0].config.max_position_embeddings, dtype=torch.long)
            text = torch.cat([encoder(ids).last_hidden_state for encoder in encoders], -1)
        _ask(unet, info, side, batch, text).float().square().mean().backward()
        optimizer.step()
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
