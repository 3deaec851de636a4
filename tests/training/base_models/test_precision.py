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


@pytest.mark.parametrize("device", [CPU, CUDA, torch.device("mps")])
@pytest.mark.parametrize(("bf16", "choice"), [(0.1, "bf16"), (0.74, "bf16"), (0.76, "fp32"), (9.0, "fp32")])
def test_bfloat16_must_win_by_a_quarter(machine, device, bf16, choice):
    asked = machine(True, fp32=1.0, bf16=bf16)
    assert choose_precision(device, 96, 12) == choice
    assert asked == [(device, torch.float32, 96, 12), (device, torch.bfloat16, 96, 12)]


def test_a_gpu_without_bfloat16_computes_in_half_precision(machine):
    asked = machine(False)
    assert choose_precision(CUDA) == "fp16"
    assert asked == []


def test_a_cpu_that_only_emulates_bfloat16_is_not_even_asked(machine):
    asked = machine(False)
    assert choose_precision(CPU) == "fp32"
    assert asked == []


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_measurement_is_the_shortest_of_several(monkeypatch, dtype):
    ticks = iter([0.0, 9.0, 10.0, 13.0, 20.0, 21.5, 30.0, 34.0, 40.0, 48.0])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert precision._seconds(CPU, dtype, 4, 4) == 1.5
