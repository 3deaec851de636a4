"""The device that draws and trains: which one it is, what memory it has, and why a card that is here can't be used."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from atelier.kernels.dispatch import twin_obstacle
from atelier.training.base_models.malloc_tuning import trim_memory

AUTO_DEVICE = "auto"
RESERVE = 0.05   # of the memory, for fragmentation and for the desktop
# How torch, its libraries and the operating systems say that memory ran out, in lower case.
_SHORTAGES = (
    "out of memory",                       # CUDA, HIP, XPU, MPS, and PyTorch's allocators
    "not enough memory",                   # DefaultCPUAllocator
    "can't allocate memory",               # the same on Linux
    "cannot allocate memory",              # Linux itself
    "failed to allocate",
    "status_alloc_failed",                 # cuBLAS, cuDNN, cuSPARSE
    "allocation_failed",                   # cuDNN 9
    "cublas_status_not_initialized",       # no room for the library's own workspace
    "cudnn_status_not_initialized",
    "unable to find an engine",            # cuDNN: each of its ways needs more than there is
    "error_out_of_device_memory",          # Level Zero
    "error_out_of_host_memory",
    "error_out_of_resources",
    "invalid buffer size",                 # Metal
    "paging file is too small",            # Windows
    "bad_alloc",
)   # fmt: skip


def best_device() -> torch.device:
    """The fastest device of this machine that torch has code for."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None or missing_code(found) else found


def usable_devices() -> list[str]:
    """Names that `device_named` knows here: ``auto``, each graphics card that torch has code for, ``cpu``."""
    found = torch.accelerator.current_accelerator(check_available=True)
    cards = [] if found is None else [torch.device(found.type, i) for i in range(torch.accelerator.device_count())]
    return [AUTO_DEVICE, *(str(card) for card in cards if not missing_code(card)), "cpu"]


def device_named(name: str) -> torch.device:
    """The device of a name; the fastest for ``auto``, and for a card that is not in this machine any more."""
    return torch.device(name) if name != AUTO_DEVICE and name in usable_devices() else best_device()


def device_title(device: torch.device) -> str:
    """A device as a person knows it: a card by its maker's name, a processor by its cores."""
    if has_own_memory(device):
        return torch.get_device_module(device).get_device_name(device)
    return f"CPU, {os.cpu_count() or 1} cores" if device.type == "cpu" else device.type.upper()


def has_own_memory(device: torch.device) -> bool:
    """Whether tensors there take nothing of the main memory: a graphics card, and no processor or Apple chip."""
    return device.type not in ("cpu", "mps", "meta")


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the memory that a device computes in: what is free for this process, and all of it."""
    if not has_own_memory(device):
        whole = psutil.virtual_memory()
        return whole.available, whole.total
    module = torch.get_device_module(device)
    module.empty_cache()   # what the allocator holds back counts as taken
    try:
        return module.mem_get_info(device)
    except RuntimeError:   # some drivers of Intel's can't say
        total = module.get_device_properties(device).total_memory
        return total - module.memory_allocated(device), total


def allocated_memory(device: torch.device) -> int:
    """Bytes that this process's tensors take of a device's own memory; 0 where it has none."""
    return torch.get_device_module(device).memory_allocated(device) if has_own_memory(device) else 0


def available_memory(device: torch.device) -> int:
    """Bytes that work on a device may use now."""
    free, total = memory(device)
    return int(free - RESERVE * total)


def release_cached(device: torch.device) -> None:
    """Hand memory that torch holds back for later to whoever needs it now."""
    gc.collect()   # a model and its pipeline hold each other
    if has_own_memory(device):
        torch.get_device_module(device).empty_cache()
    trim_memory()


def kernels_in_use(device: torch.device) -> str:
    """Whose kernels compute what Atelier has kernels for, in words."""
    if device.type != "cuda":
        return "PyTorch's"
    obstacle = twin_obstacle("merge_low_rank", device)
    return f"PyTorch's ({obstacle})" if obstacle else "Atelier's"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    torch.get_device_module(device).synchronize()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory ran out: of the device or the main memory."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError | OSError) and any(how in str(error).lower() for how in _SHORTAGES):
            return True
        error = error.__cause__
    return False


def card_problem() -> str:
    """Why a graphics card that is here is not used, and the cure; empty where there is nothing to say."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        return missing_code(found)
    if not _nvidia_card():
        return ""
    build = f"the installed PyTorch ({torch.__version__})"
    if torch.version.cuda is None:
        return (f"This machine has an NVIDIA card, but {build} is a build for CPUs only, so the card is not used. "
                "Install the build for NVIDIA cards: pip install --force-reinstall torch --index-url "
                "https://download.pytorch.org/whl/cu128")
    return (f"This machine has an NVIDIA card, but its driver does not work with {build}, which needs a driver for "
            f"CUDA {torch.version.cuda} or newer, so the card is not used. Update the driver (nvidia.com/drivers), "
            "restart the machine and check the output of nvidia-smi.")


def missing_code(device: torch.device) -> str:
    """Why torch can't run on a card although it finds it, and the cure; empty where it can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return ""
    capability, built = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if runs_on(capability, built):
        return ""
    major, minor = capability
    name = torch.cuda.get_device_name(device)
    oldest = min(_number(one) for one in built if one.startswith("sm_"))
    cure = ("PyTorch's build for CUDA 12.6 supports older cards: pip install --force-reinstall torch --index-url "
            "https://download.pytorch.org/whl/cu126" if 10 * major + minor < oldest
            else "A newer PyTorch may support it: pip install --upgrade torch")   # fmt: skip
    return (f"The {name} has compute capability {major}.{minor}, which the installed PyTorch ({torch.__version__}) "
            f"does not support (its oldest is {oldest // 10}.{oldest % 10}), so the CPU is used. {cure}")


def runs_on(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether one of the architectures that torch was built for runs on a card.

    Machine code (``sm_86``) runs on later cards of its major version, PTX (``compute_90``) on all later ones.

    >>> runs_on((6, 1), ["sm_75", "sm_80", "sm_86", "sm_90"]), runs_on((8, 9), ["sm_75", "sm_80", "sm_86", "sm_90"])
    (False, True)
    """
    own = 10 * capability[0] + capability[1]
    code = [_number(one) for one in built if one.startswith("sm_")]
    portable = [_number(one) for one in built if one.startswith("compute_")]
    return not built or any(each // 10 == own // 10 and each <= own for each in code) or any(p <= own for p in portable)


def _number(architecture: str) -> int:
    """``sm_86`` and ``sm_90a`` → 86, 90."""
    return int(architecture.rpartition("_")[2].rstrip("af"))


def _nvidia_card() -> bool:
    """Whether the operating system knows of an NVIDIA card, with a driver or without."""
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/gpus").is_dir():
        return True
    if sys.platform != "linux":
        return False
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(path.read_text().strip() == "0x10de" and (path.parent / "class").read_text().startswith("0x03")
               for path in vendors)   # fmt: skip
