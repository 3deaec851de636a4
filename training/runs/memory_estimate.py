"""How much memory a run will need, counted before it starts.

The run's phases are executed on fake tensors, which have no contents, and every allocation and release is counted as it
would happen. So the estimate follows from the model's code, whatever the family, size, kind and options.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.core.weight_only_int8 import quantize_to_int8
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.device import has_own_memory
from atelier.training.base_models.identify import identify
from atelier.training.base_models.memory_count import (
    AllocationCounter,
    counting,
    empty_parts,
    module_bytes,
    predict_zeros,
)
from atelier.training.base_models.offload import MIN_OFFLOAD_BYTES
from atelier.training.base_models.precision import DTYPES
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.cuda_graph import is_repeatable
from atelier.training.recipes.dreambooth import VALIDATION_TIMESTEPS
from atelier.training.recipes.prior_preservation import prior_batch_size
from atelier.training.sampling.decode import use_tiles

PROGRAM_BYTES = 650_000_000   # Python with torch, diffusers and transformers loaded, before any model (measured)


PARTS = ("unet", "text_encoders", "vae")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Bytes a run needs on its device: weights that are there only in some phases, and what comes on top of them."""

    unet: int             # weights
    text_encoders: int
    vae: int
    encode: int           # while pictures are encoded
    train: int            # in a step, with adapter and optimizer
    state: int = 0        # adapter and optimizer alone, which stay while the run validates and draws
    validate: int = 0
    denoise: int = 0      # while previews and prior pictures are drawn
    decode: int = 0
    merged: int = 0       # the second copy of weights that previews are merged into
    recorded: int = 0     # what a CUDA graph keeps from one step to the next
    quantize: int = 0     # while the weights are loaded and not yet in 8 bits
    program: int = 0      # of the process itself, where the device is the main memory
    offloaded: frozenset[str] = frozenset()   # the parts that are there only while they work (`offload.py`)

    @property
    def weights(self) -> int:
        """Bytes of all parts' weights: UNet, text encoders and VAE."""
        return self.unet + self.text_encoders + self.vae

    @property
    def peak(self) -> int:
        """The most at any one time."""
        later = self.state + self.recorded
        phases = (
            self.weights + self.quantize if self.program else 0,   # else parts are loaded where they wait
            self._present("vae") + self.encode,
            self._present("unet", "text_encoders"),   # when captions and prompts are read
            self._present("unet") + self.train + self.recorded,
            self._present("unet") + later + self.validate,
            self._present("unet") + later + self.merged + self.denoise,
            self._present("unet", "vae") + later + self.merged + self.decode,
        )
        return self.program + max(phases)

    def _present(self, *working: str) -> int:
        """Bytes of the weights that are there while some parts work."""
        return sum(getattr(self, name) for name in PARTS if name in working or name not in self.offloaded)


def estimate_memory(
    config: TrainConfig, precision: str, *, device: str = "cpu", processes: int = 1, info: BaseInfo | None = None
) -> MemoryNeed:
    """Count what a run needs with UNet and text encoders in ``precision``; takes seconds.

    Where the ``device`` has no memory of its own, the process's own memory counts as well. Where several ``processes``
    share each batch, the estimate is for one of them. ``info`` is what is known of a base model that is not here yet.

    Raises:
        BaseError: the base model can't be identified.
    """
    info = info or identify(config.base, config.base_options)
    fields = ("kind", "targets", "train_text_encoder", "resolution", "gradient_checkpointing", "optimizer",
              "ema", "base_in_8_bits", "validate_every", "preview_every")   # fmt: skip
    key = tuple((name, getattr(config, name)) for name in fields)
    pictures = -(-(config.batch + config.prior_batch) // processes)
    own = has_own_memory(torch.device(device))
    need = _counted(info, key, json.dumps(config.adapter), pictures, (bool(config.prior_batch), own), precision)
    recorded = need.train - need.state if device == "cuda" and processes == 1 and is_repeatable(config) else 0
    frozen = () if config.train_text_encoder else ("text_encoders",)
    if own:
        # In 8 bits the UNet is quantized on the device and stays there.
        unet = () if config.base_in_8_bits else ("unet",)
        return replace(need, recorded=recorded, offloaded=frozenset(("vae", *frozen, *unet)))
    on_disk = {name for name in ("vae", *frozen) if device == "cpu" and getattr(need, name) >= MIN_OFFLOAD_BYTES}
    return replace(need, program=PROGRAM_BYTES, offloaded=frozenset(on_disk))


@lru_cache(maxsize=64)
def _counted(
    info: BaseInfo, key: tuple[tuple[str, Any], ...], adapter: str, pictures: int, drawn: tuple[bool, bool],
    precision: str,
) -> MemoryNeed:   # fmt: skip
    """``drawn``: whether prior pictures are drawn, and whether drawings use the savings of a card."""
    from atelier.training.base_models.less_activation_memory import save_less_for_backward  # imports diffusers

    config, (prior, sparing) = TrainConfig(**dict(key), adapter=json.loads(adapter)), drawn
    parts = empty_parts(info, DTYPES[precision])
    save_less_for_backward(parts["unet"])
    with counting(*parts.values()) as counter:
        unquantized = counter.now
        if config.base_in_8_bits:
            quantize_to_int8(parts["unet"])
        quantize = unquantized - counter.now
        side = (config.resolution or info.resolution) // info.size_multiple * info.size_multiple
        denoise = counter.extra_peak(lambda: _denoise(parts["unet"], info, side, prior)) if config.preview_every else 0
        decode = counter.extra_peak(lambda: _decode(parts["vae"], info, side, sparing)) if config.preview_every else 0
        encode = counter.extra_peak(lambda: _encode(parts["vae"], side))
        steps = _Steps(parts, info, config, side, counter)
        return MemoryNeed(
            unet=module_bytes(parts["unet"]), vae=module_bytes(parts["vae"]),
            text_encoders=sum(module_bytes(part) for name, part in parts.items() if name.startswith("text_encoder")),
            encode=encode, train=counter.extra_peak(lambda: steps.train(pictures)), state=steps.state,
            validate=steps.validate, denoise=denoise, decode=decode, quantize=quantize,
            merged=0 if sparing else _merged_bytes(parts, config),
        )   # fmt: skip


def _trained(parts: Iterable[str], config: TrainConfig) -> list[str]:
    """The parts that adapters change."""
    return [name for name in parts if name == "unet" or (config.train_text_encoder and name != "vae")]


def _merged_bytes(parts: Mapping[str, Any], config: TrainConfig) -> int:
    """Bytes of the weights that previews keep twice, merged and original; low-precision ones are never merged into."""
    if config.base_in_8_bits or parts["unet"].dtype == torch.bfloat16 or not config.preview_every:
        return 0
    specs = find_targets({name: parts[name] for name in _trained(parts, config)}, config.targets)
    return sum(spec.rows * spec.columns for spec in specs) * parts["unet"].dtype.itemsize


@torch.no_grad()
def _encode(vae: Any, side: int) -> None:
    vae.encode(torch.zeros(1, 3, side, side))


@torch.no_grad()
def _denoise(unet: Any, info: BaseInfo, side: int, prior: bool) -> None:
    if prior:
        predict_zeros(unet, info, (info.resolution, info.resolution), 2 * prior_batch_size(info.resolution))
    predict_zeros(unet, info, (side, side), 2)   # conditional and unconditional


@torch.no_grad()
def _decode(vae: Any, info: BaseInfo, side: int, tiles: bool) -> None:
    size = side // info.vae_scale_factor
    with use_tiles(vae, info, tiles):
        vae.decode(torch.zeros(1, vae.config.latent_channels, size, size))


class _Steps:
    """A run's steps: with the adapter, its optimizer and a validation between them."""

    def __init__(
        self, parts: Mapping[str, Any], info: BaseInfo, config: TrainConfig, side: int, counter: AllocationCounter
    ) -> None:
        self._unet, self._info, self._config, self._side = parts["unet"], info, config, side
        self._models = {name: parts[name] for name in _trained(parts, config)}
        self._counter = counter
        self.state = self.validate = 0   # bytes, known after a step

    def train(self, batch: int) -> None:
        """A step that is not the first one: the optimizer has its state."""
        before, config = self._counter.now, self._config
        if config.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()
            self._unet.train()
        adapters = create_adapters(config.kind, config.adapter, find_targets(self._models, config.targets))
        optimizer = torch.optim.AdamW(adapters.parameters())
        # The averaged copy, and what Prodigy keeps beyond AdamW: the initial values and a running sum.
        copies = bool(config.ema) + 2 * (config.optimizer == "prodigy")
        extra = [parameter.detach().clone() for parameter in adapters.parameters() for _ in range(copies)]
        for parameter in adapters.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()   # allocates its state
        optimizer.zero_grad()
        self.state = self._counter.now - before
        with mount(self._models, Mix(((adapters, 1.0),))):
            if config.validate_every:
                self.validate = self._validate()
            prediction = predict_zeros(self._unet, self._info, (self._side, self._side), batch, self._text(batch))
            prediction.float().square().mean().backward()
            optimizer.step()
        del extra

    @torch.no_grad()
    def _validate(self) -> int:
        """Bytes on top of the state: its peak is another than that of the step around it."""
        peak = self._counter.peak
        size = (self._side, self._side)
        extra = self._counter.extra_peak(lambda: predict_zeros(self._unet, self._info, size, VALIDATION_TIMESTEPS))
        self._counter.peak = peak
        return extra

    def _text(self, batch: int) -> Tensor | None:
        """What trained text encoders make of a batch of captions."""
        encoders = [part for name, part in self._models.items() if name != "unet"]
        if not encoders:
            return None
        ids = torch.zeros(batch, encoders[0].config.max_position_embeddings, dtype=torch.long)
        return torch.cat([encoder(ids).last_hidden_state for encoder in encoders], -1)
