"""The device that is used, how its troubles are recognised, and what is said about a card that can't be used."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from pretend_device import pretend_device

from atelier.training.base_models import device as device_module
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.device import (
    best_device,
    card_problem,
    has_own_memory,
    is_out_of_memory,
    memory,
    missing_code,
    runs_on,
)

CUDA = torch.device("cuda")
TURING_AND_LATER = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def test_the_best_device_is_an_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    with pretend_device():
        assert best_device().type == "npu"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert best_device().type == "cpu"
    for name in ("xpu", "mps"):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda name=name, **_: torch.device(name))
        assert best_device().type == name


@pytest.mark.parametrize(
    ("name", "own"), [("cuda", True), ("xpu", True), ("npu", True), ("mps", False), ("cpu", False)]
)
def test_a_card_has_memory_of_its_own(name: str, own: bool):
    with pretend_device():
        assert has_own_memory(torch.device(name)) == own


def test_the_memory_is_that_of_the_device():
    with pretend_device(gigabytes=2) as device:
        kept = torch.zeros(1000, device="npu")
        assert memory(torch.device("npu")) == (device.capacity - kept.nbytes, device.capacity)
    assert memory(torch.device("cpu"))[1] == psutil.virtual_memory().total
    assert memory(torch.device("mps"))[1] == psutil.virtual_memory().total


def test_a_driver_that_can_not_say_what_is_free_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch):
    def refuse(_: object) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying the available free memory.")

    card = SimpleNamespace(empty_cache=lambda: None, mem_get_info=refuse, memory_allocated=lambda _: 30,
                           get_device_properties=lambda _: SimpleNamespace(total_memory=100))   # fmt: skip
    monkeypatch.setattr(torch, "get_device_module", lambda _: card)
    assert memory(torch.device("xpu")) == (70, 100)


def test_a_shortage_on_this_machine_is_recognised():
    """As torch says it, not as a list says that torch does."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    with pretend_device(gigabytes=0.001), pytest.raises(RuntimeError) as caught:
        torch.zeros(2**20, device="npu")
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB"),
        RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("Native API failed. Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("Invalid buffer size: 12.00 GB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: not enough memory: you tried to "
                     "allocate 4000 bytes."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
                     "you tried to allocate 4000 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("The paging file is too small for this operation to complete. (os error 1455)"),
    ],
    ids=str,
)
def test_every_spelling_of_a_shortage_is_recognised(error: Exception):
    assert is_out_of_memory(error)
    wrapped = BaseError("the base model could not be loaded")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("A prompt about a shop that is out of memory cards"),
        BaseError("the file is missing"),
        None,
    ],
    ids=str,
)
def test_other_errors_are_no_shortage(error: Exception | None):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((6, 1), TURING_AND_LATER, False),
        ((7, 0), TURING_AND_LATER, False),
        ((7, 5), TURING_AND_LATER, True),
        ((8, 9), TURING_AND_LATER, True),    # code for 8.6 runs on 8.9
        ((6, 1), ["sm_50", "sm_60", "sm_70"], True),
        ((12, 1), TURING_AND_LATER, True),
        ((12, 0), ["sm_80", "sm_90a"], False),
        ((12, 0), ["sm_80", "compute_90"], True),   # portable code is compiled for later cards
        ((8, 0), ["sm_86"], False),
        ((8, 0), [], True),                  # a build that does not say
    ],
)
def test_code_runs_on_later_cards_of_its_generation(capability: tuple[int, int], built: list[str], runs: bool):
    assert runs_on(capability, built) == runs


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """Pretend an NVIDIA card that torch finds."""

    def make(capability: tuple[int, int], built: list[str] = TURING_AND_LATER) -> None:
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: CUDA)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce GTX 1080")

    return make


def test_a_card_that_torch_has_no_code_for_is_left_alone(card: Any):
    card((6, 1))
    assert best_device().type == "cpu"
    said = card_problem()
    assert "GeForce GTX 1080" in said and "6.1" in said and "whl/cu126" in said
    card((8, 6))
    assert best_device() == CUDA
    assert card_problem() == ""


def test_a_card_that_is_newer_than_torch_asks_for_a_newer_torch(card: Any):
    card((12, 0), ["sm_80", "sm_90"])
    assert best_device().type == "cpu"
    assert "pip install --upgrade torch" in missing_code(CUDA)


def test_a_build_for_amd_cards_is_not_measured_by_nvidia_numbers(card: Any, monkeypatch: pytest.MonkeyPatch):
    card((6, 1), ["gfx1100"])
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert best_device() == CUDA


@pytest.mark.parametrize(("cuda", "cure"), [(None, "whl/cu128"), ("12.8", "Update the driver")])
def test_a_card_that_torch_does_not_find_is_explained(monkeypatch: pytest.MonkeyPatch, cuda: str | None, cure: str):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    monkeypatch.setattr(device_module, "_nvidia_card", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert cure in card_problem()
    monkeypatch.setattr(device_module, "_nvidia_card", lambda: False)
    assert card_problem() == ""
