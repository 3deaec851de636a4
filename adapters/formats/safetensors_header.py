"""The header of a safetensors file: names, shapes and sizes of its tensors, read without touching them."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000   # the format's own limit
_METADATA_FIRST = re.compile(rb'\{\s*"__metadata__"\s*:\s*')   # as the format's own library writes it
_ENDS = re.compile(rb'"data_offsets":\s*\[\d+,\s*(\d+)\]')
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class FileError(ValueError):
    """A file that can't be read as an adapter; the message says what it is and the likely cure."""


class HeaderError(ValueError):
    """What keeps a file from being read, as the end of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in the file."""

    dtype: str               # as the format spells it: F32, F16, BF16 …
    shape: tuple[int, ...]
    bytes: int

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Entries:
    """A whole header."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_entries(path: Path) -> Entries:
    """Read a safetensors header. The content decides, not the file's name.

    Raises:
        HeaderError: a pickle, a web page, cut short, or something else.
        OSError: the file can't be read.
    """
    raw = _read(path)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        spans = {name: entry["data_offsets"] for name, entry in header.items()}
        tensors = {
            name: Entry(entry["dtype"], tuple(entry["shape"]), spans[name][1] - spans[name][0])
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise HeaderError("is damaged, or not a safetensors file. Download or copy it again.") from None
    _check_size(path, raw, max((span[1] for span in spans.values()), default=0))
    return Entries(tensors, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """Only the text entries of a header: many times faster, for lists of thousands of files.

    Raises:
        HeaderError, OSError: as :func:`read_entries`.
    """
    raw = _read(path)
    first = _METADATA_FIRST.match(raw)
    if not first:
        return read_entries(path).metadata
    try:
        metadata, _ = json.JSONDecoder().raw_decode(raw.decode(), first.end())
    except ValueError:
        raise HeaderError("is damaged, or not a safetensors file. Download or copy it again.") from None
    _check_size(path, raw, max((int(end) for end in _ENDS.findall(raw)), default=0))
    return metadata


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
        if length > _LARGEST_HEADER:
            raise HeaderError(f"is {_guess(start)}, not a safetensors file. Download it again, from the download link "
                              "itself and not from the page around it.")
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


def _guess(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<", b"<!doc", b"<html")):
        return "a web page"
    return "text" if start.isascii() and start.decode().isprintable() else "something else"
