"""Adapters in few bits: levels against published tables, bytes by hand, errors against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.formats.codebook import BITS, levels, pack, unpack
from atelier.adapters.formats.native import load_adapter, read_metadata, save_adapter
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.formats.tiny import TinyError, shrink
from atelier.adapters.kinds.catalog import create_adapters

SPECS = (Spec("unet.a", (96, 64)), Spec("unet.conv", (32, 16, 3, 3)))
# Max 1960, table I: mean squared error of the best quantizer of a normal variable.
DISTORTION = {1: 0.3634, 2: 0.1175, 4: 0.009497}


@pytest.fixture
def adapters() -> AdapterSet:
    adapters = create_adapters("lora", {"rank": 4}, SPECS)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    return adapters


@pytest.fixture
def path(adapters: AdapterSet, tmp_path: Path) -> Path:
    save_adapter(tmp_path / "fox.safetensors", adapters, {"atelier.name": "fox"})
    return tmp_path / "fox.safetensors"


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_the_best_for_a_normal_variable(bits: int):
    values = torch.randn(400_000, dtype=torch.float64)
    book = levels(bits).double()
    nearest = book[(values[:, None] - book).abs().argmin(1)]
    assert (values - nearest).square().mean().item() == pytest.approx(DISTORTION[bits], rel=0.01)
    assert_close(book, -book.flip(0), atol=1e-6, rtol=0)


def test_one_bit_levels_are_known():
    assert_close(levels(1), torch.tensor([-1.0, 1.0]) * (2 / torch.pi) ** 0.5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(4, 65), (65, 4), (3, 4, 17)])
def test_what_is_packed_comes_back_on_its_levels(bits: int, shape: tuple[int, ...]):
    tensor = torch.randn(shape) * 3 + 1
    packed = pack({"x": tensor}, bits)
    longest = max(shape)
    rows = tensor.numel() // longest
    assert packed["x|codes"].shape == (rows, -(-longest * bits // 8))
    assert packed["x|codes"].dtype == torch.uint8
    (found,) = unpack(packed, bits, {"x": tensor.shape}).values()
    lines = found.movedim(shape.index(longest), -1).reshape(rows, longest)
    assert all(len(set(line.tolist())) <= 2**bits for line in lines)
    assert (found - tensor).square().mean() < 1.6 * DISTORTION[bits] * 9


def test_what_would_not_shrink_stays_as_it_is():
    tensors = {"small": torch.randn(3, 5), "line": torch.randn(100), "index": torch.arange(64).reshape(2, 32)}
    assert all(torch.equal(pack(tensors, 4)[name], tensor) for name, tensor in tensors.items())


def test_rows_without_spread_come_back_exactly():
    tensor = torch.tensor([[2.5] * 20, [0.0] * 20])
    assert_close(unpack(pack({"x": tensor}, 1), 1, {"x": tensor.shape})["x"], tensor)


@pytest.mark.parametrize("bits", BITS)
def test_a_tiny_file_opens_and_its_header_tells_the_truth(adapters: AdapterSet, path: Path, bits: int):
    shrunk = shrink(path, path.with_name("tiny.safetensors"), bits)
    loaded = load_adapter(path.with_name("tiny.safetensors"))
    errors = []
    for spec in SPECS:
        old, new = (a[spec.name].delta(torch.zeros(spec.shape)).detach().numpy() for a in (adapters, loaded))
        errors.append(np.linalg.norm(new - old) / np.linalg.norm(old))
    entries = read_metadata(path.with_name("tiny.safetensors"))
    assert float(entries["atelier.error"]) == pytest.approx(np.mean(errors), abs=1e-4)
    assert float(entries["atelier.worst_error"]) == pytest.approx(max(errors), abs=1e-4)
    assert (shrunk.mean_error, shrunk.worst_error) == pytest.approx((np.mean(errors), max(errors)), rel=1e-4)
    assert entries["atelier.name"] == "fox"


def test_fewer_bits_are_smaller_and_worse(path: Path):
    four, two, one = (shrink(path, path.with_name(f"{bits}.safetensors"), bits) for bits in (4, 2, 1))
    assert one.bytes < two.bytes < four.bytes < path.stat().st_size
    assert 0 < four.mean_error < two.mean_error < one.mean_error < 1
    assert four.mean_error < 0.15


def test_a_reader_that_does_not_know_bits_is_told_so(path: Path):
    shrink(path, path.with_name("tiny.safetensors"), 4)
    assert int(read_metadata(path.with_name("tiny.safetensors"))["atelier.schema"]) == 2
    assert int(read_metadata(path)["atelier.schema"]) == 1, "an older Atelier still opens a whole file"


def test_what_cannot_be_tiny_says_why(path: Path, tmp_path: Path):
    with pytest.raises(TinyError, match="bits is 3, but it must be one of"):
        shrink(path, tmp_path / "out.safetensors", 3)
    save_adapter(tmp_path / "dora.safetensors", create_adapters("dora", {}, SPECS), {})
    with pytest.raises(TinyError, match="DoRA is not a low-rank pair"):
        shrink(tmp_path / "dora.safetensors", tmp_path / "out.safetensors", 4)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_damaged_tiny_file_is_refused(path: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    shrink(path, tmp_path / "tiny.safetensors", 4)
    tensors = load_file(tmp_path / "tiny.safetensors")
    del tensors["unet.a.up|lines"], tensors["unet.a.up|codes"]
    save_file(tensors, tmp_path / "cut.safetensors", read_metadata(tmp_path / "tiny.safetensors"))
    with pytest.raises(FileError, match="does not match its own header"):
        load_adapter(tmp_path / "cut.safetensors")
