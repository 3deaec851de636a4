"""How large a compressed UNet of Stable Diffusion 1.5's shape is on disk: written and measured, weights at random.

    python -m benchmarks.compression.sizes     benchmarks/results/compress_sizes.json; about 8 GB of memory

Header, step sizes, zero points, 50 timesteps of input levels and everything that stays whole are in the file. It is
compared with the same UNet in float16, written by the same library.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers
from atelier.adapters.quantization.bit_policy import assign_bits
from atelier.adapters.quantization.fake_quant_layers import (
    add_activation_quantizers,
    add_fake_quant,
    find_fake_quant_layers,
)
from atelier.adapters.quantization.packed import save_packed
from atelier.training.base_models.single_file import MODELS
from benchmarks.support.machine import describe_machine

RESULTS = Path(__file__).resolve().parents[1] / "results" / "compress_sizes.json"
TIMESTEPS = range(19, 1000, 20)
# MiB: the sheet's estimates, which count neither step sizes nor headers.
ESTIMATES = {"fp16": 1639, "w8a8": 861, "w4a8": 472, "w2a8": 278, "w8": 861, "w4": 472}


def main() -> None:
    """Measure each preset and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {preset: measure(preset, Path(folder) / "unet.safetensors") for preset in ESTIMATES}
    rows = {name: {"bytes": size, "share": round(size / sizes["fp16"], 4), "estimated_mib": ESTIMATES[name]}
            for name, size in sizes.items()}   # fmt: skip
    RESULTS.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


@torch.no_grad()
def measure(preset: str, path: Path) -> int:
    """Bytes of one file."""
    unet = _unet()
    if preset == "fp16":
        save_file({name: value.half() for name, value in unet.state_dict().items()}, path)
        return path.stat().st_size
    add_fake_quant(unet, assign_bits(unet, preset), rank=0, search=False)
    bits = [layer.bits.inputs for layer in find_fake_quant_layers(unet).values() if layer.bits.inputs]
    if bits:
        steps, zeros = torch.full((len(bits),), 0.02), torch.zeros(len(bits))
        add_activation_quantizers(unet, ActivationQuantizers(TIMESTEPS, steps, zeros, bits))
    save_packed(unet, path, preset, {})
    return path.stat().st_size


def _unet() -> Any:
    values = json.loads((MODELS / "sd1" / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(values)
    unet = unet.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        parameter.data.uniform_(-0.05, 0.05, generator=generator)
    return unet


if __name__ == "__main__":
    main()
