"""Every adapter kind in every export form, read by every tool: how far the UNet's output is from our own mount.

    python -m benchmarks.interop [--kinds lora wara …]      writes docs/interop.md

diffusers, PEFT and LyCORIS load the file themselves. ComfyUI, A1111, Forge and InvokeAI are stood for by their rules on
names and types, written down in tests/tool_rules.py from their loaders. The base is the embedded UNet; every kind
changes attention, feed-forward and convolution layers with random factors. Error: ‖output − ours‖ / ‖ours − base's‖.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.logging import disable_progress_bar
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from machine import describe_machine, in_words
from tool_rules import TOOLS

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import BaseStatistics, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.export import export_mix
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.weights import weight_lookup

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("attn1.to_q", "attn2.to_k", "attn2.to_v", "ff.net.2", "resnets.0.conv1")
FORMS = ("kohya", "diffusers", "diff")
HEADER = """# Files and the tools that read them

Written by `python -m benchmarks.interop`. {docstring}

{machine}

“no” means that the tool does not load this form, by its own message or rule; the figure is the error where it does.
ComfyUI takes the convolutions and feed-forward layers of a diffusers file and silently passes over its attention, so
its errors are large there. The native form is Atelier's own, read back bit for bit. `rank` is the largest of the file.
Where ΔW has no exact low-rank pair, it is cut at 99.99 % of its energy or rank 128, whichever comes first.
"""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")   # the libraries warn of what the table is there to show
    logging.disable(logging.WARNING)
    os.environ["LYCORIS_KERNEL_BACKEND"] = "torch"   # else it compiles
    disable_progress_bar()
    model, weight_of = load("embedded", "cpu"), weight_lookup("embedded")
    readers = ["diffusers", "PEFT", "LyCORIS", *TOOLS]
    lines = [f"| kind | form | rank | file | {' | '.join(readers)} |", "|---" * (4 + len(readers)) + "|"]
    with tempfile.TemporaryDirectory() as place:
        for kind in options.kinds:
            native = Path(place) / f"{kind}.safetensors"
            _write(kind, model, native)
            base, ours = _output(model.unet), _mounted(model, native)
            for form in FORMS:
                out = Path(place) / f"{kind}-{form}.safetensors"
                report = export_mix([(native, 1.0)], out, form, weight_of=weight_of)
                cells = [_cell(reader, model, out, base, ours) for reader in readers]
                truth = "exact" if report.exact else f"ΔW off {report.max_error:.1%}"
                lines.append(f"| `{kind}` | {form} | {report.rank or '–'} | {truth} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    docstring = " ".join((__doc__ or "").split("docs/interop.md", 1)[1].split())
    text = HEADER.format(docstring=docstring, machine=in_words(describe_machine())) + "\n" + "\n".join(lines) + "\n"
    (ROOT / "docs" / "interop.md").write_text(text, encoding="utf-8")


def _write(kind: str, model: BaseModel, path: Path) -> None:
    """An adapter with random factors, as if it had been trained."""
    torch.manual_seed(0)
    chosen = [(name, module) for name, module in model.unet.named_modules() if name.endswith(LAYERS)]
    specs = [Spec(f"unet.{name}", tuple(module.weight.shape)) for name, module in chosen]
    adapters = create_adapters(kind, {}, specs)
    for (_, module), adapter in zip(chosen, adapters, strict=True):
        adapter.initialize(BaseStatistics(module.weight.detach().float()))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(path, adapters, AdapterInfo(family="embedded", base="embedded", name=kind).to_metadata())


@torch.no_grad()
def _output(unet: Any) -> Tensor:
    noise = torch.randn(3, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    text = torch.randn(3, 16, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2))
    return unet(noise, torch.tensor([801, 401, 101]), text).sample


def _mounted(model: BaseModel, path: Path) -> Tensor:
    with mount(model.models(), Mix(((load_adapter(path), 1.0),))):
        return _output(model.unet)


def _cell(reader: str, model: BaseModel, path: Path, base: Tensor, ours: Tensor) -> str:
    """The error of one reader; `no` where it does not load the file."""
    unet = copy.deepcopy(model.unet)
    if not _READERS[reader](unet, path):
        return "no"
    return f"{((_output(unet) - ours).norm() / (ours - base).norm()).item():.1e}"


def _by_diffusers(unet: Any, path: Path) -> bool:
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(ROOT / "assets" / "base", unet=unet, safety_checker=None)
    try:
        pipeline.load_lora_weights(path)
    except (ValueError, KeyError):
        return False
    return bool(unet.peft_config)


def _by_peft(unet: Any, path: Path) -> bool:
    """PEFT wants bare module names and the ranks beforehand; it reads lora_A and lora_B alone."""
    import peft

    tensors = {key.removeprefix("unet."): value for key, value in load_file(path).items()}
    ranks = {key.removesuffix(".lora_A.weight"): len(value) for key, value in tensors.items()
             if key.endswith(".lora_A.weight")}   # fmt: skip
    if not ranks:
        return False
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks)
    peft.inject_adapter_in_model(config, unet)
    found = peft.set_peft_model_state_dict(unet, tensors)
    return not found.unexpected_keys


def _by_lycoris(unet: Any, path: Path) -> bool:
    from lycoris import create_lycoris_from_weights

    tensors = load_file(path)
    renamed = {key.replace("lora_unet_", "lycoris_", 1): value for key, value in tensors.items()}
    if not any(key.startswith("lycoris_") for key in renamed):
        return False
    network, _ = create_lycoris_from_weights(1.0, "", unet, renamed)
    network.merge_to(1.0)
    return bool(network.loras)


def _by_rules(tool: str) -> Callable[[Any, Path], bool]:
    def read(unet: nn.Module, path: Path) -> bool:
        weights = {f"unet.{name}": module.weight for name, module in unet.named_modules()
                   if isinstance(module, nn.Linear | nn.Conv2d)}   # fmt: skip
        deltas = TOOLS[tool](load_file(path), weights, "embedded")
        with torch.no_grad():
            for name, delta in (deltas or {}).items():
                weights[name] += delta.to(weights[name].dtype)
        return bool(deltas)

    return read


_READERS: dict[str, Callable[[Any, Path], bool]] = {
    "diffusers": _by_diffusers, "PEFT": _by_peft, "LyCORIS": _by_lycoris, **{tool: _by_rules(tool) for tool in TOOLS},
}   # fmt: skip

if __name__ == "__main__":
    main()
