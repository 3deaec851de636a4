"""torch.compile for parts of a frozen UNet: an option, because it takes minutes before the first step.

Residual blocks gain most (norms, activations and sums between convolutions become one kernel), and they repeat. Most
adapters do not change them, so mounting adapters does not compile anything again.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from atelier.kernels.torch_internals import allow_recompiling


def compile_blocks(unet: nn.Module, adapted: Iterable[str], backend: str = "inductor") -> int:
    """Compile every residual block that no adapter changes, in place; each when it is first called.

    Args:
        unet: the model.
        adapted: full names of the layers with adapters, such as ``unet.mid_block.resnets.0.conv1``.
        backend: torch's.

    Returns:
        The number of blocks.
    """
    names = tuple(adapted)
    blocks = [block for name, block in unet.named_modules()
              if isinstance(block, ResnetBlock2D) and not any(other.startswith(f"unet.{name}.") for other in names)]
    # To torch all blocks are one piece of code, and by default it compiles at most eight variants of one.
    allow_recompiling(8 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


def compile_error(device: torch.device) -> str:
    """Why torch can't compile here, as the first line of its error; empty when it can."""
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:   # its back ends raise whatever they like: no compiler, no Triton, another Python
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
