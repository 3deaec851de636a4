"""What is timed: a training step, a drawing's forward pass, a slider that moves; ours, and peers to the same recipe.

    python -m benchmarks.support.contenders NAME OPTIONS   started by interleaved.py; each line is answered with JSON

``diffusers recipe`` is the step of diffusers' DreamBooth LoRA script (examples/dreambooth/train_dreambooth_lora.py)
written again from its recipe: VAE and text encoder in every step, PEFT's layers, AdamW, clipping. ``peft`` is the
same with latents and text cached, ``peft, memory kept`` in a process that keeps freed memory as ours do. Weights are
random, from one seed; so are pictures, captions, noise and timesteps.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from atelier.adapters.attach.merge import MergeCache
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.base_models.device import has_own_memory
from atelier.training.base_models.fewer_operations import skip_idle_operations
from atelier.training.base_models.less_activation_memory import save_less_for_backward
from atelier.training.base_models.malloc_tuning import keep_freed_memory
from atelier.training.base_models.offload import CpuOffload, DiskOffload
from atelier.training.loop.batch import UnetInput, example_losses
from atelier.training.loop.noise import NoisyLatents
from benchmarks.support.interleaved import ROOT

PROVEN = 3   # steps whose losses must agree
Options = dict[str, Any]


class Contender(NamedTuple):
    """Numbers that prove what is computed, and one repeat."""

    proof: list[float]
    repeat: Callable[[], object]


def _filled(model: nn.Module, seed: int, options: Options) -> Any:
    """Random weights of a model that was made without any; quicker than its own initialization."""
    model.to_empty(device="cpu")
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=dice)
        else:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
    return _there(model.requires_grad_(False).eval(), options)


def _there(value: Any, options: Options) -> Any:
    """A model or tensor on the device and in the dtype that the options name; text and timesteps stay whole numbers."""
    dtype = getattr(torch, options.get("dtype", "float32"))
    floating = isinstance(value, nn.Module) or value.is_floating_point()
    moved = value.to(options.get("device", "cpu"))
    return nn.Module.to(moved, dtype) if isinstance(value, nn.Module) else moved.to(dtype) if floating else moved


def _unet(options: Options) -> Any:
    return _built(UNet2DConditionModel, "unet", [32, 64, 128, 128] if options["quick"] else None, 0, options)


def _vae(options: Options) -> Any:
    return _built(AutoencoderKL, "vae", [32, 32, 64, 64] if options["quick"] else None, 1, options)


def _reader(options: Options) -> Any:
    config = json.loads((ROOT / "assets" / "models" / "sd1" / "text_encoder" / "config.json").read_text())
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config | {"num_hidden_layers": 1 if options["quick"] else 12}))
    model = _filled(model, 4, options)
    for name, positions in model.named_buffers():   # not in the file of a model either: they count
        assert name.endswith("position_ids"), name
        positions.copy_(torch.arange(positions.shape[-1]))
    return model


def _built(kind: Any, part: str, channels: list[int] | None, seed: int, options: Options) -> Any:
    config = json.loads((ROOT / "assets" / "models" / "sd1" / part / "config.json").read_text())
    if channels:
        config["block_out_channels"] = channels
    with torch.device("meta"):
        model = kind.from_config(config)
    return _filled(model, seed, options)


class Lesson(NamedTuple):
    """One picture, the same for everybody."""

    pixels: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tensor


def _lesson(options: Options) -> Lesson:
    dice, side = torch.Generator().manual_seed(2), options["side"]
    drawn = (torch.rand(1, 3, side, side, generator=dice) * 2 - 1,
             torch.randn(1, 4, side // 8, side // 8, generator=dice),
             torch.tensor([500]), torch.randint(49000, (1, 77), generator=dice))   # fmt: skip
    return Lesson(*(_there(tensor, options) for tensor in drawn))


def _encoded(vae: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor


def _read(reader: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return reader(tokens)[0]


@torch.no_grad()
def _start(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """The same first factors for everybody: up zero, down random."""
    dice = torch.Generator().manual_seed(3)
    for up, down in pairs:
        nn.init.zeros_(up)
        down.copy_(torch.randn(down.shape, generator=dice) * down.shape[1] ** -0.5)


def _trained(loss: Callable[[], Tensor], parameters: list[Any], *, fused: bool) -> Contender:
    """A contender that takes whole steps: loss, gradients, clipping, update."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2, fused=fused or None)

    def step() -> float:
        """One update; returns its loss."""
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return Contender([step() for _ in range(PROVEN)], step)


def _adapters(unet: Any, rank: int, seed: int = 0) -> AdapterSet:
    torch.manual_seed(seed)
    return create_adapters("lora", {"rank": rank}, find_targets({"unet": unet}, "attention")).to(unet.device)


def atelier(options: Options) -> Contender:
    """As the app trains: latents encoded once, adapters mounted, one operation a layer, what is not needed at rest."""
    keep_freed_memory()
    unet, lesson, scheduler = _unet(options), _lesson(options), DDPMScheduler(beta_schedule="scaled_linear")
    vae, reader = _vae(options), _reader(options)
    save_less_for_backward(unet)
    skip_idle_operations(unet)
    nothing: Any = None
    rest = CpuOffload() if has_own_memory(unet.device) else DiskOffload(Path(tempfile.gettempdir()))
    model = BaseModel(nothing, unet, vae, reader, nothing, scheduler, offload_to=rest)
    model.offload(vae, reader)
    with model.on_device(vae):
        latents = _encoded(vae, lesson.pixels)
    with model.on_device(reader):
        words = _read(reader, lesson.tokens)
    adapters = _adapters(unet, options["rank"])
    _start([(adapter.up, adapter.down) for adapter in adapters])   # type: ignore[arg-type]
    noisy: Any = scheduler.add_noise(latents, lesson.noise, lesson.timesteps)   # type: ignore[arg-type]
    seen = NoisyLatents(noisy, lesson.timesteps, lesson.noise)
    shown = UnetInput((0,), seen, PromptEmbeddings(words), torch.zeros(1, 6, device=unet.device),
                      torch.ones(1, device=unet.device))   # fmt: skip

    def loss() -> Tensor:
        """The loss of one step, mounted as in a training."""
        # Attached for every step, as the loop does: that is part of its price.
        with mount({"unet": unet}, Mix(((adapters, 1.0),))):
            return example_losses(model, [shown], [0]).mean()

    return _trained(loss, list(adapters.parameters()), fused=True)


def _peft(options: Options, *, cached: bool, compiled: bool = False, kept: bool = False) -> Contender:
    from peft import LoraConfig

    if kept:
        keep_freed_memory()
    unet, lesson, scheduler = _unet(options), _lesson(options), DDPMScheduler(beta_schedule="scaled_linear")
    vae, reader = _vae(options), _reader(options)
    specs = find_targets({"unet": unet}, "attention")
    names = [spec.name.removeprefix("unet.") for spec in specs]
    unet.add_adapter(LoraConfig(r=options["rank"], lora_alpha=options["rank"], target_modules=names))
    modules = [unet.get_submodule(name) for name in names]
    _start([(module.lora_B["default"].weight, module.lora_A["default"].weight) for module in modules])
    known = (_encoded(vae, lesson.pixels), _read(reader, lesson.tokens)) if cached else None
    call = torch.compile(unet) if compiled else unet

    def loss() -> Tensor:
        """The loss of one step as the script computes it."""
        latents, words = known or (_encoded(vae, lesson.pixels), _read(reader, lesson.tokens))
        noisy: Any = scheduler.add_noise(latents, lesson.noise, lesson.timesteps)   # type: ignore[arg-type]
        return F.mse_loss(call(noisy, lesson.timesteps, words, return_dict=False)[0].float(), lesson.noise)

    return _trained(loss, [p for p in unet.parameters() if p.requires_grad], fused=False)


def lycoris(options: Options) -> Contender:
    """LyCORIS' LoCon modules, latents cached: what kohya's trainer runs, without its trainer."""
    from lycoris.modules.locon import LoConModule

    unet, lesson, scheduler = _unet(options), _lesson(options), DDPMScheduler(beta_schedule="scaled_linear")
    vae, reader, rank = _vae(options), _reader(options), options["rank"]
    latents, words = _encoded(vae, lesson.pixels), _read(reader, lesson.tokens)
    layers = [LoConModule(spec.name, unet.get_submodule(spec.name.removeprefix("unet.")), 1.0, rank, rank)
              for spec in find_targets({"unet": unet}, "attention")]
    for layer in layers:
        layer.apply_to()
    _start([(layer.lora_up.weight, layer.lora_down.weight) for layer in layers])
    noisy: Any = scheduler.add_noise(latents, lesson.noise, lesson.timesteps)   # type: ignore[arg-type]

    def loss() -> Tensor:
        """The mean squared error of the predicted noise."""
        return F.mse_loss(unet(noisy, lesson.timesteps, words, return_dict=False)[0], lesson.noise)

    return _trained(loss, [p for layer in layers for p in layer.parameters() if p.requires_grad], fused=False)


def forward(options: Options) -> Contender:
    """One call of the UNet with ``count`` constant adapters merged; 0 is the bare model."""
    keep_freed_memory()   # for the bare model too: what it is worth is no part of this
    unet, lesson = _unet(options), _lesson(options)
    words = _there(torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(5)), options)
    sets = [_adapters(unet, options["rank"], seed) for seed in range(options["count"])]
    context = MergeCache().merge({"unet": unet}, Mix(tuple((one, 1.0) for one in sets)))
    context.__enter__()

    def call() -> Tensor:
        """One prediction without gradients."""
        with torch.no_grad():
            return unet(lesson.noise, lesson.timesteps, words, return_dict=False)[0]

    # A fresh adapter changes nothing, so all must draw what the bare model does.
    return Contender([call().square().mean().item()], call)


def slider(options: Options) -> Contender:
    """One of eight sliders moves by a little more each time; all Stable Diffusion 1.5's attention layers."""
    unet = _unet(options)
    sets = [_adapters(unet, options["rank"], seed) for seed in range(8)]
    for number, one in enumerate(sets):
        for parameter in one.parameters():
            nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(number))
    merges, place = MergeCache(), unet.get_submodule(sets[0].specs[0].name.removeprefix("unet."))
    moves = [0.5]

    def move() -> float:
        """Move the first slider a little and merge again; returns the moved strength's result."""
        moves.append(moves[-1] + 0.001)
        parts = Mix(tuple((one, moves[-1] if i == 0 else 1.0) for i, one in enumerate(sets)))
        kept = merges if options["kept"] else MergeCache()
        with kept.merge({"unet": unet}, parts):
            return place.weight.square().mean().item()

    return Contender([move() for _ in range(PROVEN)], move)


CONTENDERS: dict[str, Callable[[Options], Contender]] = {
    "atelier": atelier,
    "diffusers recipe": lambda options: _peft(options, cached=False),
    "peft": lambda options: _peft(options, cached=True),
    "peft, memory kept": lambda options: _peft(options, cached=True, kept=True),
    "peft compiled": lambda options: _peft(options, cached=True, compiled=True),
    "lycoris": lycoris,
    "bare": lambda options: forward(options | {"count": 0}),
    "merged": forward,
    "kept": lambda options: slider(options | {"kept": True}),
    "fresh": lambda options: slider(options | {"kept": False}),
}


def main() -> None:
    """Get ready, then repeat for every line that comes."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    contender = CONTENDERS[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps({"seconds": time.perf_counter() - began, "proof": contender.proof}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        contender.repeat()
        times = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall,
                 "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}   # fmt: skip
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
