"""What a file is, from its header alone: a hundred sorts of headers, and files that have none."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from header_corpus import ADAPTERS, OTHERS, Header

from atelier.adapters.formats.detect import detect
from atelier.adapters.formats.safetensors_header import FileError, cached_safetensors_header


def written(path: Path, header: Header) -> Path:
    """A whole file with these tensors, whose values are a hole on the disk: all zeros, and no bytes."""
    place, entries = 0, {}
    for key, shape in header.items():
        size = 2
        for side in shape:
            size *= side
        entries[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return path


def test_the_corpus_is_large():
    assert len(ADAPTERS) + len(OTHERS) >= 100


@pytest.mark.parametrize("what", ADAPTERS)
def test_an_adapter_is_told_with_all_its_layers(tmp_path: Path, what: str):
    header, family, layers, algorithm = ADAPTERS[what]
    contents = detect(written(tmp_path / "a.safetensors", header))
    assert (contents.family, len(contents.layers)) == (family, layers)
    assert contents.algorithms[algorithm] == max(contents.algorithms.values())
    assert all("bundle_emb" in key for key in contents.unknown)


@pytest.mark.parametrize("what", OTHERS)
def test_anything_else_is_refused_with_what_it_is(tmp_path: Path, what: str):
    header, said = OTHERS[what]
    with pytest.raises(FileError, match=rf"^a\.safetensors .*{said}") as refusal:
        detect(written(tmp_path / "a.safetensors", header))
    text = str(refusal.value)
    assert text.endswith(".") and len(text) < 300 and "\n" not in text


BYTES = {
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 9\n", "git lfs pull"),
    "a git-annex pointer": (b"/annex/objects/SHA256E-s1--4d7a21.safetensors\n", "git annex get"),
    "GGUF": (b"GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0" + b"\0" * 99, "GGUF file.*safetensors version"),
    "a web page": (b"\n\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page.*download link"),
    "an XML error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "a JSON error": (b'{"error": "Invalid credentials, please sign in"}', "text .JSON.*sign in"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "a picture.*not its preview"),
    "a JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\0" * 99, "a picture"),
    "WebP": (b"RIFF\x24\x10\x20\x30WEBPVP8 " + b"\0" * 99, "a picture"),
    "a pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c", "a pickle file"),
    "a ZIP archive, as torch saves": (b"PK\x03\x04\x14\0\0\0\0\0\0\0", "a pickle file"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c\0\x04" + b"\x01" * 99, "an archive"), "PDF": (b"%PDF-1.7\n" + b" " * 99, "a PDF"),
    "plain text": (b"Repository not found, sorry for that." * 2, "is text"),
    "noise": (bytes(range(200, 256)) * 2, "something else"),
    "nothing": (b"", "is empty"), "a few bytes": (b"\x01\0", "is empty"),
    "half a header": (struct.pack("<Q", 999) + b'{"a": {"dtype"', "incomplete"),
}   # fmt: skip


@pytest.mark.parametrize("what", BYTES)
def test_what_is_no_safetensors_file_is_told_from_its_first_bytes(tmp_path: Path, what: str):
    blob, said = BYTES[what]
    (tmp_path / "a.safetensors").write_bytes(blob)
    with pytest.raises(FileError, match=rf"^a\.safetensors .*{said}") as refusal:
        detect(tmp_path / "a.safetensors")
    assert str(refusal.value).endswith(".")


def test_a_file_that_was_cut_short_says_how_much_is_missing(tmp_path: Path):
    path = written(tmp_path / "a.safetensors", ADAPTERS["kohya, SD 1"][0])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(FileError, match=r"a\.safetensors is incomplete: [\d,]+ of [\d,]+ bytes are missing"):
        detect(path)


def test_a_cached_header_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written(path, {"a": [2]})
    assert cached_safetensors_header(path) is cached_safetensors_header(path)
    written(tmp_path / "b.safetensors", {"b": [2]}).replace(path)
    assert list(cached_safetensors_header(path).tensors) == ["b"]
