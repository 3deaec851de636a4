"""Parts of a frozen UNet compiled by torch: an option, for it takes minutes before the first step.

Residual blocks are what torch gains most with (norms, activations and sums between convolutions become one kernel), and
they repeat; and most adapters leave them alone, so that attaching never makes anybody compile again.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


def compile_blocks(unet: nn.Module, touched: Iterable[str], backend: str = "inductor") -> int:
    """Compile every residual block that no adapter touches, in place; each when it is first called.

    Args:
        unet: the model.
        touched: full names of the layers with adapters, such as ``unet.mid_block.resnets.0.conv1``.
        backend: torch's.

    Returns:
        How many there are.
    """
    names = tuple(touched)
    blocks = [block for name, block in unet.named_modules()
              if isinstance(block, ResnetBlock2D) and not any(other.startswith(f"unet.{name}.") for other in names)]
    # All blocks are one piece of code to torch, which would give up after eight sizes of it.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


def cannot_compile(device: torch.device) -> str:
    """Why torch can't compile here, in its own first line; empty when it can."""
    try:
        torch.compile(_something)(torch.ones(2, device=device))
    except Exception as error:   # its back ends raise whatever they like: no compiler, no Triton, another Python
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ""


def _something(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
