"""Which precision to train in: by rule on a GPU, elsewhere measured on the device."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from atelier.kernels.torch_internals import multiplies_bfloat16
from atelier.training.base_models.device import has_own_memory, synchronize

AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def drawing_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What UNet and text encoders draw in: as asked for, or for ``auto`` float16 on a GPU and float32 on a CPU.

    Both can be merged into, which bfloat16 is too coarse for.
    """
    if precision == AUTO:
        return torch.float32 if device.type == "cpu" else torch.float16
    return DTYPES[precision]


def choose_precision(device: torch.device, channels: int = 320, side: int = 32) -> str:
    """Name the precision to train in.

    A GPU takes bfloat16 where it has it, else float16. Elsewhere a 3×3 convolution of a base model's width is timed,
    forward and backward: bfloat16 must win by a quarter to be chosen. On a CPU without matrix units it is several times
    slower than float32, and where both are alike float32 is the more exact.

    Args:
        device: where training will run.
        channels: width of the convolution (the UNet's first block).
        side: latent height and width in pixels.
    """
    if has_own_memory(device):
        return "bf16" if torch.get_device_module(device).is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and not multiplies_bfloat16():
        return "fp32"   # emulated, at a tenth of the speed: a busy machine must not mistake it for the faster one
    try:
        seconds = {name: _seconds(device, DTYPES[name], channels, side) for name in ("fp32", "bf16")}
    except (RuntimeError, TypeError):   # macOS before 14 has no bfloat16
        return "fp32"
    return "bf16" if seconds["bf16"] < 0.75 * seconds["fp32"] else "fp32"


def _seconds(device: torch.device, dtype: torch.dtype, channels: int, side: int) -> float:
    """Best of five runs, in seconds."""
    x = torch.randn(2, channels, side, side, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        F.conv2d(x, weight, padding=1).sum().backward()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
