"""Which arithmetic is chosen, given what was measured."""

from __future__ import annotations

import pytest
import torch

from atelier.training.base_models import precision
from atelier.training.base_models.precision import DTYPES, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """Pretend a device: whether it has bfloat16, and the seconds that each precision takes there."""
    asked: list[tuple[torch.device, torch.dtype, int, int]] = []

    def pretend(supported: bool, /, **seconds: float) -> list[tuple[torch.device, torch.dtype, int, int]]:
        def measure(device: torch.device, dtype: torch.dtype, channels: int, side: int) -> float:
            asked.append((device, dtype, channels, side))
            return {DTYPES[name]: value for name, value in seconds.items()}[dtype]

        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation
        )
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
        monkeypatch.setattr(precision, "_seconds", measure)
        return asked

    return pretend


@pytest.mark.parametrize("device", [CPU, torch.device("mps")])
@pytest.mark.parametrize(("bf16", "choice"), [(0.1, "bf16"), (0.74, "bf16"), (0.76, "fp32"), (9.0, "fp32")])
def test_bfloat16_must_win_by_a_quarter(machine, device, bf16, choice):
    asked = machine(True, fp32=1.0, bf16=bf16)
    assert choose_precision(device, 96, 12) == choice
    assert asked == [(device, torch.float32, 96, 12), (device, torch.bfloat16, 96, 12)]


@pytest.mark.parametrize(("bf16", "choice"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_is_not_timed_but_asked_whether_it_has_bfloat16(machine, bf16, choice):
    asked = machine(bf16)
    assert choose_precision(CUDA) == choice
    assert asked == []


def test_a_device_without_bfloat16_stays_with_float32(monkeypatch):
    def measure(device: torch.device, dtype: torch.dtype, *_: int) -> float:
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return 1.0

    monkeypatch.setattr(precision, "_seconds", measure)
    assert choose_precision(torch.device("mps")) == "fp32"


def test_the_clock_is_read_when_the_device_is_done(monkeypatch):
    done: list[torch.device] = []
    monkeypatch.setattr(precision, "synchronize", done.append)
    precision._seconds(CPU, torch.float32, 4, 4)
    assert done == [CPU] * 5


def test_a_cpu_that_only_emulates_bfloat16_is_not_even_asked(machine):
    asked = machine(False)
    assert choose_precision(CPU) == "fp32"
    assert asked == []


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_measurement_is_the_shortest_of_several(monkeypatch, dtype):
    ticks = iter([0.0, 9.0, 10.0, 13.0, 20.0, 21.5, 30.0, 34.0, 40.0, 48.0])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert precision._seconds(CPU, dtype, 4, 4) == 1.5
