"""How many parts a picture's file has: a few megabytes of empty ones would take a decoder minutes."""

from __future__ import annotations

import struct
from typing import BinaryIO

MAX_PARTS = 50_000   # a PNG of 250 MB has 32,000 chunks of the usual 8 kB
_STANDALONE = frozenset([0x01, *range(0xD0, 0xD9)])   # markers of JPEG that have no length
_LAST = frozenset([0xD9, 0xDA])   # the end, and the scan: from here on the decoder needs no Python


def has_too_many_parts(file: BinaryIO) -> bool:
    """Whether a PNG or JPEG file has more chunks or segments than any picture needs; it is then at its start again."""
    start = file.read(8)
    step = _after_chunk if start == b"\x89PNG\r\n\x1a\n" else _after_segment if start[:2] == b"\xff\xd8" else None
    place: int | None = 8 if step is _after_chunk else 2
    count = 0
    while step and place is not None and count <= MAX_PARTS:
        file.seek(place)
        place, count = step(file.read(8), place), count + 1
    file.seek(0)
    return count > MAX_PARTS


def _after_chunk(head: bytes, place: int) -> int | None:
    """Where the chunk of a PNG ends that begins at ``place``; None after the last one."""
    if len(head) < 8 or head[4:] == b"IEND":
        return None
    return place + 12 + struct.unpack(">I", head[:4])[0]


def _after_segment(head: bytes, place: int) -> int | None:
    """Where the segment of a JPEG ends that begins at ``place``; None before the pixels."""
    if len(head) < 4 or head[0] != 0xFF or head[1] in _LAST:
        return None
    if head[1] == 0xFF:   # a byte that fills
        return place + 1
    return place + 2 + (0 if head[1] in _STANDALONE else struct.unpack(">H", head[2:4])[0])
