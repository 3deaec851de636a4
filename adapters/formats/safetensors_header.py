"""The header of a safetensors file: names, shapes and sizes of its tensors, read without touching them."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.parse import parse_json, without_halves

_LENGTH_BYTES = 8
_FORMAT_LIMIT = 100_000_000   # bytes of a header, by the format
# What is read. The largest checkpoints have headers of 1 MB and 5,000 tensors; with all a training tool writes of its
# captions, and a picture, adapters come to a few MB. Parsing takes up to 25 times as much memory.
MAX_HEADER = 16_000_000
MAX_TENSORS = 50_000
MAX_CACHED_HEADER = 2_000_000   # bytes of a header that stays in memory
MAX_DIMENSIONS = 8
MAX_SIZE = 2**31 - 1
_LOOK = 64   # bytes of a file that tell what it is instead
# Bits of a value, for every number format of safetensors 0.8.
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16), **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}   # fmt: skip
_DAMAGED = "is damaged, or not a safetensors file. Download or copy it again."
_METADATA_FIRST = re.compile(rb'\{\s*"__metadata__"\s*:\s*')   # as the format's own library writes it
_ENDS = re.compile(rb'"data_offsets":\s*\[\d{1,19},\s*(\d{1,19})\]')
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class FileError(ValueError):
    """A file that can't be read as an adapter; the message says what it is and the likely cure."""


class HeaderError(ValueError):
    """What keeps a file from being read, as the end of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a safetensors header says of one tensor: dtype, shape and the bytes it occupies."""

    dtype: str               # as the format spells it: F32, F16, BF16 …
    shape: tuple[int, ...]
    bytes: int
    start: int = 0           # its first byte in the file

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A safetensors header, read and checked: the text metadata and an entry for every tensor."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read a safetensors header. The content decides, not the file's name.

    Raises:
        HeaderError: a pickle, a web page, cut short, or something else.
        OSError: the file can't be read.
    """
    raw = _read(path)
    header = _parse(raw)
    metadata = _texts(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise HeaderError(f"contains {len(header):,} tensors, but at most {MAX_TENSORS:,} can be read.")
    tensors = {name: _entry(name, value) for name, value in header.items()}
    _check_size(path, raw, max((value["data_offsets"][1] for value in header.values()), default=0))
    first = _LENGTH_BYTES + len(raw)
    tensors = {name: replace(entry, start=first + header[name]["data_offsets"][0]) for name, entry in tensors.items()}
    return SafetensorsHeader(tensors, metadata)


def cached_safetensors_header(path: Path) -> SafetensorsHeader:
    """The same for files that are looked at before each drawing, as those of a base model: a changed file is read anew.

    Raises:
        HeaderError, OSError: as :func:`read_safetensors_header`.
    """
    facts = path.stat()
    with path.open("rb") as file:
        if int.from_bytes(file.read(_LENGTH_BYTES), "little") > MAX_CACHED_HEADER:
            return read_safetensors_header(path)
    return _cached_header(path, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino)


@lru_cache(maxsize=16)
def _cached_header(path: Path, _modified: int, _changed: int, _size: int, _inode: int) -> SafetensorsHeader:
    return read_safetensors_header(path)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = parse_json(raw)
    except ValueError:
        raise HeaderError(_DAMAGED) from None
    if not isinstance(header, dict):
        raise HeaderError(_DAMAGED)
    return header


def _texts(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(_DAMAGED)
    return metadata


def _entry(name: str, value: object) -> TensorEntry:
    """Check what a header says of one tensor, so that nothing is allocated on the word of a file that lies."""
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise HeaderError(_DAMAGED)
    if dtype not in BITS:
        raise HeaderError(f"contains {name[:80]} in an unknown number format, {dtype[:20]!r}.")
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape):
        raise HeaderError(f"is damaged: {name[:80]} has an impossible shape. Download or copy it again.")
    if not 0 <= start <= end or prod(shape) * BITS[dtype] != 8 * (end - start):
        raise HeaderError(f"is damaged: the size of {name[:80]} does not match its shape. Download or copy it again.")
    return TensorEntry(dtype, tuple(shape), end - start)


def read_metadata(path: Path) -> dict[str, str]:
    """Only the text entries of a header: many times faster, for lists of thousands of files.

    Raises:
        HeaderError, OSError: as :func:`read_safetensors_header`.
    """
    raw = _read(path)
    first = _METADATA_FIRST.match(raw)
    if not first:
        return read_safetensors_header(path).metadata
    try:
        metadata, _ = json.JSONDecoder().raw_decode(raw.decode(), first.end())
    except (ValueError, RecursionError):
        raise HeaderError(_DAMAGED) from None
    _check_size(path, raw, max((int(end) for end in _ENDS.findall(raw)), default=0))
    return _texts(without_halves(metadata))


def _read(path: Path) -> bytes:
    """The JSON of a header."""
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        opens = file.read(1)
        # A header of 640 bytes begins with the same two bytes as a pickle, but then comes JSON.
        if start.startswith(_PICKLE_STARTS) and opens != b"{":
            raise HeaderError("is a pickle file (.ckpt, .pt, .bin), whatever its name says, and opening it can run "
                              "code. Download the .safetensors version, or convert it with a tool you trust.")
        if len(start) < _LENGTH_BYTES:
            raise HeaderError("is empty or nearly empty. Download or copy it again.")
        (length,) = struct.unpack("<Q", start)
        if MAX_HEADER < length <= _FORMAT_LIMIT and opens == b"{":
            most = format_bytes(MAX_HEADER)
            raise HeaderError(f"has a header of {format_bytes(length)}, but at most {most} are read.")
        if length > MAX_HEADER:
            raise HeaderError(_what_it_is(start + opens + file.read(_LOOK)))
        raw = opens + file.read(max(0, length - 1))
    if len(raw) < length:
        raise HeaderError("is incomplete. Download or copy it again.")
    return raw


def _check_size(path: Path, raw: bytes, data: int) -> None:
    size = path.stat().st_size
    missing = _LENGTH_BYTES + len(raw) + data - size
    if missing > 0:
        raise HeaderError(f"is incomplete: {missing:,} of {missing + size:,} bytes are missing. Download or copy it "
                          "again.")


# How files of other sorts begin, in small letters → what they are and the cure.
_BEGINNINGS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"version https://git-lfs",),
     "is a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder, or download it from its page."),
    ((b"/annex/objects", b"../.git/annex"), "is a git-annex pointer, not the file itself. Run `git annex get` for it."),
    ((b"gguf", b"ggml", b"ggjt", b"lmgg", b"tjgg"),
     "is a GGUF file, a compressed model for llama.cpp or ComfyUI-GGUF, not an adapter. Download the .safetensors "
     "version."),
    ((b"<",), "is a web page, not a safetensors file. Download it again, from the download link itself and not from "
              "the page around it."),
    ((b"{", b"["), "is text (JSON), which sites often send instead of the file. Download it again, and sign in first "
                   "if the site asks for it."),
    ((b"\x89png", b"\xff\xd8\xff", b"gif8", b"riff", b"bm"),
     "is a picture, not a safetensors file. Download the model itself, not its preview."),
    ((b"7z\xbc\xaf", b"rar!", b"\x1f\x8b", b"\xfd7zxz", b"\x28\xb5\x2f\xfd"), "is an archive. Unpack it first."),
    ((b"%pdf",), "is a PDF, not a safetensors file. Download the model itself."),
)


def _what_it_is(start: bytes) -> str:
    """What a file is that begins so and has no safetensors header."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if said := next((said for begins, said in _BEGINNINGS if text.startswith(begins)), ""):
        return said
    kind = "text" if text.isascii() and all(byte >= 32 or byte in (9, 10, 13) for byte in text) else "something else"
    return f"is {kind}, not a safetensors file. Download it again, from its download link."
