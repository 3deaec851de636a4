"""What Atelier uses of PyTorch beyond its documentation, in one place.

tests/kernels/test_torch_internals.py watches it, and says what has moved when another version is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class OperationObserver(TorchDispatchMode):
    """While it is open as a context, :meth:`observe` sees the result of every operation of torch."""

    def observe(self, result: Any) -> None:
        """Look at what one operation returned; it may be nested lists and tuples of tensors."""
        raise NotImplementedError

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.observe(result)
        return result


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    from torch.utils._pytree import tree_iter

    return (value for value in tree_iter(result) if isinstance(value, Tensor))


def fake_tensors() -> AbstractContextManager[Any]:
    """A context whose new tensors have shape, dtype and device, but no values and no memory; real ones may be read."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # loads much, and only memory estimates need it

    return FakeTensorMode(allow_non_fake_inputs=True)


def conv_with_weight(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution's own operation with another weight; unlike F.conv2d, it knows circular and reflected borders."""
    return conv._conv_forward(x, weight, bias)


def two_sided_padding(conv: nn.Conv2d) -> list[int]:
    """Its padding as ``F.pad`` takes it (left, right, top, bottom), also where it was given as "same"."""
    return conv._reversed_padding_repeated_twice


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """A direct child by its name; ``get_submodule`` asks three times for the same."""
    return module._modules.get(name)


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers by name, without those of its children; a look-up in it costs next to nothing."""
    return module._buffers


def version_of(tensor: Tensor) -> int:
    """How often the values of a tensor were changed in place."""
    return tensor._version


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 itself, rather than by emulation."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def allow_recompiling(count: int) -> None:
    """Let torch.compile make at least ``count`` variants of one function; it gives up after eight."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, count)
