"""What a header may claim: decided before memory is taken, by the amount of memory that is taken."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.adapters.core.base import Spec
from atelier.adapters.formats import safetensors_header as header
from atelier.adapters.formats.native import load_adapter, read_header, read_metadata, save_adapter
from atelier.adapters.formats.safetensors_header import BITS, FileError, HeaderError, read_safetensors_header
from atelier.adapters.kinds.catalog import KINDS, create_adapters

DEEP = "[" * 100_000 + "]" * 100_000


def written(path: Path, text: str | bytes, data: int = 0) -> Path:
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return path


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **others: Any) -> str:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **others}})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (tensor(dtype="F128"), "unknown number format, 'F128'"),
        (tensor(dtype=7), "damaged"),
        (tensor(shape=[2**40]), "impossible shape"),
        (tensor(shape=[-2]), "impossible shape"),
        (tensor(shape=[True, 2]), "impossible shape"),
        (tensor(shape=[2.0]), "impossible shape"),
        (tensor(shape=[1] * 8 + [2]), "impossible shape"),
        (tensor(shape=2), "damaged"),
        (tensor(shape=[3]), "size of x does not match its shape"),
        (tensor(shape=[2**31 - 1] * 8), "size of x does not match its shape"),
        (tensor(offsets=[8, 0]), "does not match"),
        (tensor(offsets=[-8, 0]), "does not match"),
        (tensor(offsets=[0]), "damaged"),
        (tensor(offsets=[0, "8"]), "damaged"),
        (tensor(offsets=[0, 10**30], shape=[1]), "does not match"),
        (tensor(shape=[2**30], offsets=[0, 2**32]), "is incomplete: 4,294,967,288 of"),
        ('{"x": [1]}', "damaged"), ("[]", "damaged"), ("7", "damaged"), ("", "damaged"), (DEEP, "damaged"),
        (f'{{"x": {DEEP}}}', "damaged"), (f'{{"__metadata__": {DEEP}}}', "damaged"),
        ('{"__metadata__": 1}', "damaged"), ('{"__metadata__": {"a": 1}}', "damaged"),
        ('{"__metadata__": [], "x": 1}', "damaged"), (f'{{"x": {"9" * 5000}}}', "damaged"), (b"{\xff}", "damaged"),
    ],
    ids=lambda value: str(value)[:50],
)   # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(HeaderError, match=why):
        read_safetensors_header(written(tmp_path / "a.safetensors", text, 8))


@pytest.mark.parametrize("text", [f'{{"__metadata__": {DEEP}}}', '{"__metadata__": 1}', '{"__metadata__": {"a": {}}}',
                                  f'{{"__metadata__": {{}}, "x": {{"data_offsets": [0,{"9" * 5000}]}}}}',
                                  f'{{"__metadata__": {{}}, "x": {{"data_offsets": [0,{"9" * 18}]}}}}'],
                         ids=range(5))   # fmt: skip
def test_the_short_way_to_the_texts_is_as_careful(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "a.safetensors", text)
    try:
        assert header.read_metadata(path) == {}
    except HeaderError:
        return
    assert "9" * 5000 in text, "an end that no file has counts for nothing; the tensors are read by a stricter reader"


def test_a_header_of_many_megabytes_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 50_000_000) + b"{")
        file.truncate(60_000_000)
    with pytest.raises(HeaderError, match="has a header of 50 MB, but at most 16 MB are read"):
        read_safetensors_header(path)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({str(i): torch.zeros(1) for i in range(4)}, tmp_path / "a.safetensors")
    assert len(read_safetensors_header(tmp_path / "a.safetensors").tensors) == 4
    monkeypatch.setattr(header, "MAX_TENSORS", 3)
    with pytest.raises(HeaderError, match="contains 4 tensors, but at most 3 can be read"):
        read_safetensors_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool,
              torch.float8_e4m3fn, torch.float8_e5m2, torch.int16, torch.complex64])   # fmt: skip
def test_every_number_format_that_torch_writes_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"x": torch.zeros(3, 5).to(dtype), "empty": torch.zeros(0, 7).to(dtype)}, tmp_path / "a.safetensors")
    entries = read_safetensors_header(tmp_path / "a.safetensors").tensors
    assert entries["x"].shape == (3, 5) and BITS[entries["x"].dtype] == 8 * dtype.itemsize


LOAD = """
import resource, sys
from pathlib import Path
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.formats.safetensors_header import FileError
import torch
torch.zeros(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load_adapter(Path(path))
    except FileError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def own(path: Path, kind: str, specs: dict[str, list[int]], **others: str) -> Path:
    texts = {"atelier.schema": "1", "atelier.kind": kind, "atelier.settings": "{}",
             "atelier.modules": json.dumps(specs)}   # fmt: skip
    save_file({"x": torch.zeros(2)}, path, texts | others)
    return path


def test_a_small_file_with_large_claims_takes_no_memory(tmp_path: Path) -> None:
    """Each is of some hundred bytes and describes gigabytes, or thousands of layers."""
    paths = [own(tmp_path / f"{kind}.safetensors", kind, {"unet.a": [3_000_000, 30_000]}) for kind in KINDS]
    many = {f"unet.down_blocks.{i}.to_q": [30_000, 30_000] for i in range(500)}
    paths.append(own(tmp_path / "many.safetensors", "lora", many))
    paths.append(own(tmp_path / "bits.safetensors", "lora", many, **{"atelier.schema": "2", "atelier.bits": "4"}))
    paths.append(own(tmp_path / "steps.safetensors", "lora", many, **{"atelier.schema": "2", "atelier.bits": "40"}))
    out = subprocess.run([sys.executable, "-c", LOAD, *map(str, paths)], capture_output=True, text=True, check=True)
    *reasons, grown = out.stdout.splitlines()
    assert len(reasons) == len(paths) and all(path.name in said for path, said in zip(paths, reasons, strict=True))
    # In kilobytes, as Linux counts; most of it is what torch imports when it first multiplies shapes.
    assert int(grown) < 250_000


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_known_without_memory(kind: str) -> None:
    specs = (Spec("a", (64, 32)), Spec("b", (32, 64)), Spec("c", (32, 16, 3, 3)))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in create_adapters(kind, {}, specs).tensors().items()}
    real = create_adapters(kind, {}, specs)
    assert {name: value.shape for name, value in real.tensors().items()} == shapes
    assert {*shapes} >= {name for name, _ in real.named_parameters() if "." not in name}


def test_a_file_must_hold_what_it_describes(tmp_path: Path) -> None:
    specs = (Spec("unet.a", (64, 32)),)
    save_adapter(tmp_path / "a.safetensors", create_adapters("lora", {}, specs), {})
    texts, tensors = read_metadata(tmp_path / "a.safetensors"), load_file(tmp_path / "a.safetensors")
    tensors["unet.a.up"] = tensors["unet.a.up"].T.contiguous()
    save_file(tensors, tmp_path / "a.safetensors", texts)
    with pytest.raises(FileError, match=r"does not match its own header at: unet\.a\.up"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shape", ["[]", "[1,1,1,1,1,1,1,1,1]", "[-1]", "[1.5]", '["4"]', "[true]", f"[{2**40}]", "4"])
def test_a_module_without_a_shape_is_refused(tmp_path: Path, shape: str) -> None:
    path = own(tmp_path / "a.safetensors", "lora", {})
    texts = read_metadata(path) | {"atelier.modules": f'{{"unet.a": {shape}}}'}
    save_file({"x": torch.zeros(2)}, path, texts)
    with pytest.raises(FileError, match="damaged header"):
        read_header(path)
