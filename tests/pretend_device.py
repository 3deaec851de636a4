"""A device with memory of its own, without the hardware: tensors say ``npu:0`` and keep their values in main memory.

Nothing here is calculated on a GPU, but everything is *placed* as on one. So the whole program runs, and fails where it
would fail on a card:

- tensors of two devices in one operation raise, as CUDA has it: scalars are free to mix, indices may be on the CPU,
  ``cat`` and ``stack`` take no exceptions, and a generator belongs to the device of what it fills;
- memory is counted by living storages, and an allocation beyond ``capacity`` raises :class:`torch.OutOfMemoryError`;
- what a GPU would have to wait for (:attr:`Pretended.waits`), copies between both memories (``copies``) and kernels
  that would be launched (``launches``) are counted.

Built on torch's registration of a device in Python. What that can't do is patched while the device is in use:
``torch.tensor`` and ``torch.as_tensor``, which copy below the Python dispatch; attention, which torch would take apart;
modules swap their parameters when they
move, so that a parameter stays the same object as it does with CUDA; and autograd stays on the calling thread, because
a thread of its own for this device aborts the process at exit.
"""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "npu"   # must be a name that torch knows to belong to its private-use device
WAITING = frozenset("_local_scalar_dense nonzero masked_select is_nonzero equal unique _unique2 unique_dim".split())
COPYING = frozenset(("copy_", "_to_copy"))
INDEXED_FROM_ANYWHERE = frozenset("index index_put index_put_ _unsafe_index _index_put_impl_".split())
WITHOUT_EXCEPTION = frozenset(("cat", "stack"))
# They allocate, or look at what is there in another way: no kernel runs.
LAUNCHING_NOTHING = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided resize_ set_ detach alias _unsafe_view lift_fresh "
    "_reshape_alias _local_scalar_dense _pin_memory is_pinned is_same_size record_stream".split()
)
# Left to themselves they resize what they fill, and a wrapper does not follow.
RESIZING = ("eye", "eye.m", "linspace", "arange", "arange.start", "arange.start_step")
# One kernel on a card, where torch would take this device for one that has only what they are made of.
WHOLE = frozenset(("silu_backward",))
_active: list[Pretended] = []   # the device in use, if any


class Pretended:
    """The device: what it has, and what happened on it since :meth:`forget`."""

    def __init__(self, capacity: int, *, bf16: bool = True) -> None:
        self.capacity, self.bf16 = capacity, bf16
        self.allocated = self.peak = 0   # bytes
        self.waits: Counter[str] = Counter()      # "operation at file:line"
        self.copies: Counter[str] = Counter()     # "cpu > npu at file:line"
        self.launches: Counter[str] = Counter()   # operation
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return self.capacity - self.allocated

    def forget(self) -> None:
        """Begin to count anew; what is allocated stays."""
        self.peak = self.allocated
        for counts in (self.waits, self.copies, self.launches):
            counts.clear()

    def allocate(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is let go.

        Raises:
            torch.OutOfMemoryError: there is no room for it.
        """
        if storage in self._storages:
            return
        size = storage.nbytes()
        if size > self.free:
            raise torch.OutOfMemoryError(f"{NAME.upper()} out of memory. Tried to allocate {size} bytes; "
                                         f"{self.free} of {self.capacity} are free.")
        self._storages.add(storage)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.allocated -= size

    def note(self, name: str, operation: Any, arguments: tuple[Any, ...], target: str | None) -> None:
        """Count one operation on tensors of the device."""
        if name in WAITING:
            self.waits[f"{name} at {_caller()}"] += 1
        if name in COPYING:
            source = arguments[1] if name == "copy_" else arguments[0]
            goal = _place(arguments[0]) if name == "copy_" else target or _place(source)
            if _place(source) != goal:
                self.copies[f"{_place(source)} > {goal} at {_caller()}"] += 1
        if name not in LAUNCHING_NOTHING and not _is_view(operation):
            self.launches[name] += 1


class PretendTensor(Tensor):
    """A tensor of the device, around one on the CPU that has its values."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> PretendTensor:
        with torch.inference_mode(mode=False):   # a view of what was made before inference mode must be possible in it
            return Tensor._make_wrapper_subclass(   # type: ignore[attr-defined]
                cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
                dtype=values.dtype, layout=values.layout, device=f"{NAME}:0", requires_grad=False,
            )   # fmt: skip

    def __init__(self, values: Tensor) -> None:
        self.values = values
        if _active:
            _active[-1].allocate(values.untyped_storage())

    def __repr__(self, **_: Any) -> str:   # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    # torch's own works below the dispatch, where the values would stay behind.
    @property
    def data(self) -> Tensor:   # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, PretendTensor) or other.dtype != self.dtype:
            raise RuntimeError("set_data: the new tensor is of another type")
        self.values = other.values

    def tolist(self) -> Any:
        if _active:
            _active[-1].waits[f"tolist at {_caller()}"] += 1
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        copied = PretendTensor(self.values.clone())
        copied.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True   # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("A tensor was to be pickled while it is on the device: bring it to the CPU first.")


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out one operation on the values, after the rules of the device have been checked."""
    if _is_composite(operation):   # in inference mode torch leaves it to the device to take these apart
        return operation.decompose(*args, **kwargs)
    name = operation.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    _check(name, args, kwargs, tensors)
    if _active and (far or target == NAME):
        _active[-1].note(name, operation, args, target)
    bare_args, bare_kwargs = tree_map(lambda x: x.values if isinstance(x, PretendTensor) else x, (args, kwargs))
    if target == NAME:
        bare_kwargs = {**bare_kwargs, "device": torch.device("cpu")}
    result = ATTENTION.get(name, operation)(*bare_args, **bare_kwargs)
    here = isinstance(args[0], PretendTensor) if name == "copy_" else target == NAME or (far and target is None)
    if name == "_local_scalar_dense":
        return result
    if not here:
        return args[0] if name == "copy_" else result
    if name == "_to_copy" and result is bare_args[0]:
        result = result.clone()
    wrapped = tree_map(lambda x: PretendTensor(x) if isinstance(x, Tensor) else x, result)
    aliasing = far and (operation._schema.is_mutable or any(one.alias_info for one in operation._schema.returns))
    if aliasing:
        wrapped = return_and_correct_aliasing(operation, args, kwargs, wrapped)
        assert not isinstance(wrapped, Tensor) or wrapped.shape == wrapped.values.shape, f"{operation} has resized"
    return wrapped


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0,
    causal: bool = False, debug: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:   # fmt: skip
    """Attention that keeps no matrix of all pairs, with the outputs of a card's."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, logsumexp = flash(query, key, value, dropout, causal, attn_mask=mask, scale=scale)
    none = query.new_empty(0)
    return output, logsumexp, none, none, query.shape[2], key.shape[2], none, none, none


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, wanted: Any, output: Tensor,
    logsumexp: Tensor, _cum_q: Any, _cum_k: Any, _max_q: Any, _max_k: Any, dropout: float, causal: bool,
    _seed: Any, _offset: Any, *, scale: float | None = None,
) -> tuple[Any, ...]:   # fmt: skip
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mask = None if mask is None or not mask.numel() else mask
    found = flash(gradient, query, key, value, output, logsumexp, dropout, causal, attn_mask=mask, scale=scale)
    return *found, None


ATTENTION = {
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_fused_attention_overrideable_backward": _attention_backward,
}


def _check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Raise where CUDA would: tensors, or a generator, of another device."""
    far = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    near = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    if far and near and name not in COPYING and not (
        name in INDEXED_FROM_ANYWHERE and isinstance(args[0], PretendTensor)
    ):
        stray = [tensor for tensor in near if tensor.dim() or name in WITHOUT_EXCEPTION]
        if stray:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, "
                               f"{NAME}:0 and cpu! ({name}, shapes {[tuple(one.shape) for one in stray]})")
    generator = kwargs.get("generator")
    target = kwargs.get("device")
    if generator is not None and generator.device.type == "cpu" and (
        far or (target is not None and torch.device(target).type == NAME)
    ):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({name})")


@cache
def _is_composite(operation: Any) -> bool:
    return operation.overloadpacket.__name__ not in WHOLE and operation._can_decompose()


@cache
def _is_view(operation: Any) -> bool:
    returns = operation._schema.returns
    return any(one.alias_info and not one.alias_info.is_write for one in returns)


def _place(value: Any) -> str:
    return value.device.type


def _caller() -> str:
    """The line of the project, or failing that of whichever library, that asked for this."""
    frames = [frame for frame in traceback.extract_stack() if "pretend_device" not in frame.filename]
    own = [frame for frame in frames if "/atelier/" in frame.filename] or frames
    path = own[-1].filename.rpartition("/atelier/")[2].rpartition("site-packages/")[2]
    return f"{path}:{own[-1].lineno}"


class _Backend:
    """What torch and the libraries ask of ``torch.npu``."""

    def is_available(self) -> bool:
        return bool(_active)

    def is_initialized(self) -> bool:
        return True

    def _lazy_init(self) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return len(_active)

    def current_device(self) -> int:
        return 0

    def synchronize(self, device: object = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        pass

    manual_seed_all = manual_seed

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return _active[-1].bf16 or including_emulation

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return _active[-1].free, _active[-1].capacity

    def memory_allocated(self, device: object = None) -> int:
        return _active[-1].allocated

    def get_device_name(self, device: object = None) -> str:
        return "a pretended device"

    def get_device_properties(self, device: object = None) -> SimpleNamespace:
        return SimpleNamespace(name=self.get_device_name(), total_memory=_active[-1].capacity)


@cache
def _registered() -> tuple[torch.library.Library, ...]:
    """Tell torch of the device, once a process; the libraries must be kept alive."""
    from torch.utils.backend_registration import _DummyPrivateUse1Hook, _setup_privateuseone_for_python_backend

    class Hook(_DummyPrivateUse1Hook):
        def is_available(self) -> bool:
            return bool(_active)

    _device_constructors()   # remembered at the first call: it must remember the functions that are patched later
    _setup_privateuseone_for_python_backend(NAME, _Backend(), Hook())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
    factories = torch.library.Library("aten", "IMPL")
    for name in (*RESIZING, *WHOLE):
        operation = getattr(torch.ops.aten, name.partition(".")[0])
        overload = getattr(operation, name.partition(".")[2] or "default")
        factories.impl(name, lambda *args, _call=overload, **kwargs: _run(_call, args, kwargs), "PrivateUse1")
    return everything, factories


def _one_operation(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``scaled_dot_product_attention`` as on a card, where torch would take this device for one without it."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, **options: Any,
    ) -> Tensor:   # fmt: skip
        if not isinstance(query, PretendTensor):
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        whole = torch.ops.aten._scaled_dot_product_fused_attention_overrideable
        return whole(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)[0]

    return attention


def _by_copy(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` in two steps that the dispatch sees."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, PretendTensor):
            return data if device is None else data.to(device)
        result = make(data, *args, **kwargs)
        return result if device is None else result.to(device)

    return made


@contextmanager
def pretend_device(gigabytes: float = 24.0, *, bf16: bool = True) -> Iterator[Pretended]:
    """The device is there, and the best of this machine, while this is open."""
    _registered()
    device = Pretended(int(gigabytes * 1e9), bf16=bf16)
    swapped, products = torch.__future__.get_swap_module_params_on_conversion(), torch.get_float32_matmul_precision()
    torch.__future__.set_swap_module_params_on_conversion(True)
    _active.append(device)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            for name in ("tensor", "as_tensor"):
                stack.enter_context(patch.object(torch, name, _by_copy(getattr(torch, name))))
            # Clipping and optimizers take many tensors by one operation, as with CUDA.
            for module in (_foreach_utils, optimizer):
                supported = [Tensor, nn.Parameter, PretendTensor]
                stack.enter_context(patch.object(module, "_foreach_supported_types", supported))
            whole = _one_operation(functional.scaled_dot_product_attention)
            stack.enter_context(patch.object(functional, "scaled_dot_product_attention", whole))
            yield device
    finally:
        _active.remove(device)
        torch.__future__.set_swap_module_params_on_conversion(swapped)
        torch.set_float32_matmul_precision(products)
