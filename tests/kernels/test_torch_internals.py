"""What Atelier uses of PyTorch beyond its documentation is still there, and does the same."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from atelier.kernels.torch_internals import (
    OperationObserver,
    allow_recompiling,
    buffers_of,
    child_of,
    conv_with_weight,
    fake_tensors,
    multiplies_bfloat16,
    tensors_in,
    two_sided_padding,
    version_of,
)

USED = (
    "torch.utils._python_dispatch:TorchDispatchMode.__torch_dispatch__", "torch.utils._pytree:tree_iter",
    "torch._subclasses.fake_tensor:FakeTensorMode", "torch.nn:Conv2d._conv_forward", "torch:Tensor._version",
    "torch:ops.mkldnn._is_mkldnn_bf16_supported", "torch._dynamo:config.recompile_limit",
)   # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_nothing_has_moved(name: str):
    module, _, path = name.partition(":")
    moved = f"torch {torch.__version__} has no {name}: see kernels/torch_internals.py"
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{moved} ({error})")


@pytest.mark.parametrize("name", ["_buffers", "_modules"])
def test_a_module_keeps_its_parts_where_they_were(name: str):
    assert isinstance(getattr(nn.Linear(1, 1), name, None), dict), f"torch {torch.__version__} has no Module.{name}"


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_a_convolution_runs_with_another_weight_and_its_own_border(mode: str):
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode=mode, bias=False)   # type: ignore[arg-type]
    other = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode=mode)   # type: ignore[arg-type]
    x = torch.randn(1, 2, 6, 6)
    assert other.bias is not None
    assert_close(conv_with_weight(conv, x, other.weight, other.bias), other(x))


@pytest.mark.parametrize("padding", [(1, 2), "same"])
def test_padding_is_what_pad_takes(padding: str | tuple[int, int]):
    conv = nn.Conv2d(2, 3, (3, 5), padding=padding, bias=False)
    x = torch.randn(1, 2, 6, 7)
    assert_close(F.conv2d(F.pad(x, two_sided_padding(conv)), conv.weight), conv(x))


def test_children_buffers_and_versions():
    norm = nn.BatchNorm1d(2)
    assert child_of(nn.Sequential(norm), "0") is norm and child_of(norm, "0") is None
    assert list(buffers_of(norm)) == ["running_mean", "running_var", "num_batches_tracked"]
    value = torch.zeros(1)
    before = version_of(value)
    value.add_(1)
    assert version_of(value) == before + 1


def test_an_observer_sees_every_result_and_fake_tensors_take_no_memory():
    seen: list[torch.Size] = []

    class Shapes(OperationObserver):
        def observe(self, result: object) -> None:
            seen.extend(tensor.shape for tensor in tensors_in(result))

    with fake_tensors(), Shapes():
        parts = torch.empty(1 << 30, 1 << 10).split(1 << 29)   # four terabytes
        assert parts[0].device.type == "cpu"
    assert seen == [(1 << 30, 1 << 10), (1 << 29, 1 << 10), (1 << 29, 1 << 10)]


def test_recompiling_is_allowed_and_never_less_than_before():
    config = importlib.import_module("torch._dynamo").config
    with config.patch(recompile_limit=8):
        allow_recompiling(40)
        allow_recompiling(3)
        assert config.recompile_limit == 40


def test_whether_bfloat16_is_multiplied_is_yes_or_no():
    assert multiplies_bfloat16() in (True, False)
