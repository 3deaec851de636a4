"""Any one value of a valid file made NaN, infinite or absurd: refused by the tensor's name, never silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_files import LYCORIS, PEFT, write_lycoris, write_peft
from safetensors.torch import load_file
from torch import Tensor

from atelier.adapters.formats import read_foreign as reader
from atelier.adapters.formats.detect import AdapterContents, detect
from atelier.adapters.formats.safetensors_header import FileError

VALUES = (torch.nan, torch.inf, -torch.inf, 4e30)


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch: pytest.MonkeyPatch):
    """LyCORIS would compile its reference."""
    monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")


def changed(tensors: dict[str, Tensor], contents: AdapterContents) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A tensor's name, and all tensors with one value of it changed, for every tensor of a layer and every value."""
    used = {key for layer in contents.layers.values() for key in layer.keys.values()}
    draw = torch.Generator().manual_seed(0)
    for key in sorted(used):
        if tensors[key].is_floating_point() and tensors[key].numel():
            for value in VALUES:
                other = tensors[key].clone()
                other.view(-1)[torch.randint(other.numel(), (), generator=draw)] = value
                yield key, {**tensors, key: other}


def silent(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """How many changes were tried, and those that were not refused by name. The file is read once."""
    contents, tensors = detect(path), load_file(path)
    monkeypatch.setattr(reader, "detect", lambda path: contents)
    count, taken = 0, []
    for key, other in changed(tensors, contents):
        monkeypatch.setattr(reader, "read_tensors", lambda path, other=other: other)
        count += 1
        try:
            reader.read_foreign(path)
            taken.append(key)
        except FileError as error:
            if key not in str(error):
                taken.append(f"{key}: {error}")
    monkeypatch.undo()
    return count, taken


def test_one_odd_value_anywhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, _ = write_lycoris(tmp_path / "a.safetensors", "DoRA of LoKr", "sd1", r".*mid_block.*attn2.*")
    count, taken = silent(path, monkeypatch)
    assert count >= 40 and taken == []


@pytest.mark.slow
def test_every_odd_value_in_every_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    total = 0
    for number, (library, kind) in enumerate([("PEFT", kind) for kind in PEFT] + [("", kind) for kind in LYCORIS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")
        path, _ = write_peft(folder, kind, "sd1") if library else write_lycoris(folder / "a.safetensors", kind, "sd1")
        count, taken = silent(path, monkeypatch)
        assert taken == [], (library, kind)
        total += count
    assert total >= 5000
    print(f"{total} cases")
