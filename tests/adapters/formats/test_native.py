"""The native file: what is written comes back to the bit, and what is no adapter is called by its name."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.adapter_info import PACKED_SCHEMA
from atelier.adapters.formats.native import (
    FileError,
    data_hash,
    load_adapter,
    read_header,
    read_metadata,
    read_tensors,
    save_adapter,
    write_tensors,
)
from atelier.adapters.kinds.catalog import create_adapters

SETTINGS = {"rank": 3, "alpha": 5.0, "stabilized": False, "start": "random", "budget": 0}
SPECS = (Spec("unet.down.0.to_q", (8, 6)), Spec("unet.conv", (4, 3, 3, 3)), Spec("text_encoder.fc1", (5, 7)))


@pytest.fixture
def adapters() -> AdapterSet:
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": 3, "alpha": 5.0}, SPECS)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    return adapters


@pytest.fixture
def path(adapters: AdapterSet, tmp_path: Path) -> Path:
    save_adapter(tmp_path / "fox.safetensors", adapters, {"atelier.name": "fox", "note": "日本 ✓"})
    return tmp_path / "fox.safetensors"


def raw(path: Path) -> tuple[dict, bytes]:
    """Header and data of a safetensors file, read by hand."""
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def with_metadata(path: Path, **changes: str | None) -> Path:
    """A copy whose ``atelier.`` entries are changed; None takes one away."""
    entries = read_metadata(path) | {f"atelier.{name}": value for name, value in changes.items()}
    copy = path.with_name("changed.safetensors")
    save_file(load_file(path), copy, {key: value for key, value in entries.items() if value is not None})
    return copy


def test_round_trip(adapters: AdapterSet, path: Path):
    loaded = load_adapter(path)
    assert loaded.kind == "lora"
    assert loaded.settings == adapters.settings
    assert loaded.specs == list(SPECS)
    for key, tensor in adapters.tensors().items():
        assert torch.equal(loaded.tensors()[key], tensor)


def test_header_holds_what_is_needed_to_rebuild(path: Path):
    header, _ = raw(path)
    entries = header.pop("__metadata__")
    assert entries["atelier.schema"] == "1"
    assert entries["atelier.kind"] == "lora"
    assert json.loads(entries["atelier.settings"]) == SETTINGS
    assert json.loads(entries["atelier.modules"]) == {spec.name: list(spec.shape) for spec in SPECS}
    assert set(header) == {f"{spec.name}.{part}" for spec in SPECS for part in ("up", "down")}


def test_header_is_read_without_the_tensors(path: Path):
    header = read_header(path)
    assert header.kind == "lora"
    assert header.settings == SETTINGS
    assert header.specs == SPECS
    assert (header.metadata["atelier.name"], header.metadata["note"]) == ("fox", "日本 ✓")


def test_a_file_from_before_a_setting_existed_opens(adapters: AdapterSet, path: Path):
    loaded = load_adapter(with_metadata(path, settings='{"rank": 3, "alpha": 5.0}'))
    assert loaded.settings == adapters.settings
    assert all(torch.equal(loaded.tensors()[key], tensor) for key, tensor in adapters.tensors().items())


def test_layers_may_have_ranks_of_their_own(tmp_path: Path):
    ranks = {"unet.down.0.to_q": 5, "unet.conv": 0}
    adapters = create_adapters("lora", {"rank": 3, "alpha": 6.0}, SPECS, ranks)
    save_adapter(tmp_path / "a.safetensors", adapters, {})
    loaded = load_adapter(tmp_path / "a.safetensors")
    assert {spec.name: len(loaded.tensors()[f"{spec.name}.down"]) for spec in loaded.specs} == {
        "unet.down.0.to_q": 5, "text_encoder.fc1": 3}
    factors = [adapter.factors() for adapter in loaded]
    assert all(torch.equal(a, b) for pair, own in zip(factors, adapters, strict=True)
               for a, b in zip(pair or (), own.factors() or (), strict=True))
    assert torch.equal((factors[0] or ())[0], 2 * loaded.tensors()["unet.down.0.to_q.up"]), "the scale is the same"


def test_ranks_of_their_own_are_refused_where_layers_share():
    with pytest.raises(SettingError, match="LoRTA can't have a different rank"):
        create_adapters("lorta", {}, SPECS, {"unet.conv": 2})


def test_own_entries_cannot_be_overruled(adapters: AdapterSet, path: Path):
    save_adapter(path, adapters, {"atelier.kind": "nonsense", "atelier.schema": "99"})
    assert load_adapter(path).kind == "lora"


def test_opening_draws_no_random_numbers(path: Path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_adapter(path)
    assert torch.equal(torch.rand(4), expected)


def test_data_hash_is_of_the_bytes_behind_the_header(path: Path):
    _, data = raw(path)
    assert data_hash(path) == hashlib.sha256(data).hexdigest()


def test_metadata_does_not_change_the_hash_and_a_weight_does(adapters: AdapterSet, path: Path):
    before = data_hash(path)
    save_adapter(path, adapters, {"atelier.name": "x" * 5000})
    assert data_hash(path) == before
    with torch.no_grad():
        adapters.tensors()["unet.conv.up"][0, 0] += 1
    save_adapter(path, adapters, {})
    assert data_hash(path) != before


@pytest.mark.parametrize(("owner", "failing"), [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_scrap(path: Path, monkeypatch, owner: object, failing: str):
    before = path.read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.ones(3)}, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_good_write_leaves_no_scrap(path: Path):
    assert list(path.parent.iterdir()) == [path]


def test_tensors_are_read_whole(path: Path):
    expected = load_file(path)
    found = read_tensors(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><head><title>404</title>", "a web page"),
        (b"PK\x03\x04 archive/data.pkl" + bytes(64), "a pickle"),
    ],
    ids=["empty", "web page", "pickle"],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, why: str):
    path = tmp_path / "fox.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"fox\.safetensors is {why}.*Download"):
        load_adapter(path)


@pytest.mark.parametrize("cut", [4, 300, -1])
def test_a_cut_file_is_refused(path: Path, cut: int):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileError, match=r"incomplete|empty"):
        load_adapter(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(FileError, match=r"gone\.safetensors does not exist"):
        load_adapter(tmp_path / "gone.safetensors")


def test_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(FileError):
        load_adapter(tmp_path)


def test_a_foreign_file_is_refused(tmp_path: Path):
    save_file({"emb_params": torch.zeros(5, 8)}, tmp_path / "emb.safetensors")
    with pytest.raises(FileError, match="not one of Atelier's"):
        read_header(tmp_path / "emb.safetensors")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schema": str(PACKED_SCHEMA + 1)}, "newer version of Atelier. Update"),
        ({"schema": "two"}, "damaged header"),
        ({"modules": None}, "damaged header"),
        ({"modules": "{"}, "damaged header"),
        ({"modules": "[1, 2]"}, "damaged header"),
        ({"settings": "rank = 3"}, "damaged header"),
        ({"settings": '{"rank": 0}'}, "rank is 0, but it must be between 1 and 1024"),
        ({"settings": '{"rnak": 3}'}, "Did you mean 'rank'"),
        ({"settings": '{"rank": 4, "alpha": 5.0}'}, "does not match its own header"),
        ({"kind": "quux"}, "There is no adapter kind 'quux'"),
        ({"modules": '{"unet.conv": [4, 3, 3, 3]}'}, "does not match its own header"),
        ({"modules": '{"unet.conv": [4, 3, 3, 3], "unet.down.0.to_q": [8, 6], "text_encoder.fc1": [7, 5]}'},
         "does not match its own header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, [*value, *value.values()])),
)
def test_a_damaged_header_is_refused(path: Path, changes: dict[str, str | None], why: str):
    with pytest.raises(FileError, match=why):
        load_adapter(with_metadata(path, **changes))


def test_a_newer_file_is_called_newer_even_if_it_is_laid_out_otherwise(path: Path):
    with pytest.raises(FileError, match="newer version of Atelier"):
        read_header(with_metadata(path, schema="3", modules=None))
