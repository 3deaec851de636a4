"""The smallest kernel, to find out whether Triton can compile here: its driver is built with a C compiler.

Apart from ``dispatch.py``, which runs it, because only files like this one may import Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SIZE = 16


@triton.jit
def add_one_kernel(values_ptr, SIZE: tl.constexpr):
    """Add 1 to every value."""
    places = values_ptr + tl.arange(0, SIZE)
    tl.store(places, tl.load(places) + 1)


def probe(device: torch.device) -> None:
    """Compile it and run it; raises whatever Triton raises where it can't.

    Raises:
        RuntimeError: it ran and gave something else.
    """
    values = torch.zeros(SIZE, device=device)
    add_one_kernel[(1,)](values, SIZE=SIZE)   # type: ignore[index]
    if values.sum().item() != SIZE:
        raise RuntimeError("a kernel of Triton's gives wrong values")
