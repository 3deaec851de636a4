"""Damaged and hostile inputs for everything that reads a file: changes of good ones, drawn from a seed.

A reader gives a value or raises an error of Atelier's own, whose message is a sentence. Anything else is a fault, and
so are more than two seconds of processor time and 300 MB of memory.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MOST_SECONDS, MOST_GROWTH = 2.0, 300_000_000
# What breaks readers: numbers beyond all types, nesting, other types, halves of characters, names with a meaning.
TOKENS = (
    b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-1", b"0", b"true", b"{}", b"[]", b'""', b"[" * 20_000,
    b'{"a":' * 5_000, b"\\ud800", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"'''", b'"""', b"\\", b"$",
    b'"__metadata__"', b'"__class__"', b"../../etc/passwd", b"/dev/zero", b"F32", b"F64", b"BOOL", b"data_offsets",
    b"[0,0]", b"[1,0]", b"18446744073709551616", b"1_000", b"0x7fffffff", b"2026-13-45", b"inf", b"<script>", b"\r\n",
    b"tEXt", b"iTXt", b"zTXt", b"IDAT", b"eXIf", b"\xff\xd8\xff\xe1",
)   # fmt: skip


@dataclass(frozen=True, slots=True)
class Reader:
    """Something that reads: good inputs, how to read one, and which errors it may raise beside Atelier's own."""

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()
    repair: Callable[[bytes], bytes] | None = None   # makes what is around a changed part fit again


@dataclass(slots=True)
class Outcome:
    """What happened to one reader."""

    name: str
    inputs: int = 0
    refused: int = 0
    uncaught: dict[str, bytes] = field(default_factory=dict)   # kind of error → the first input
    slow: int = 0
    slowest: float = 0.0     # seconds of processor time
    growth: int = 0          # bytes of resident memory, at most

    @property
    def is_sound(self) -> bool:
        """Whether nothing happened that may not."""
        return not self.uncaught and not self.slow and self.growth <= MOST_GROWTH


def change(data: bytes, seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """Change an input in one to four places."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        start = dice.randrange(len(data) + 1)
        end = min(len(data), start + dice.choice((0, 1, 1, 2, 4, 8, 64, 1000)))
        match dice.randrange(7):
            case 0:
                data = data[:start] + dice.randbytes(end - start) + data[end:]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:end] + data[start:]
            case 3:
                data = data[:start] + dice.choice(TOKENS) + data[dice.choice((start, end)):]
            case 4:
                other = dice.choice(seeds)
                data = data[:start] + other[dice.randrange(len(other) + 1):]
            case 5 if start < len(data):
                data = data[:start] + bytes([data[start] ^ 1 << dice.randrange(8)]) + data[start + 1:]
            case _:
                data = _other_value(data, dice)
    return data


def _other_value(data: bytes, dice: random.Random) -> bytes:
    """Put another value in the place of one between commas, colons or equals signs, so that the rest stays readable."""
    marks = [place for place, byte in enumerate(data[:20_000]) if byte in b",:=[{"]
    if not marks:
        return data
    start = dice.choice(marks) + 1
    end = min((place for place in (data.find(mark, start) for mark in (b",", b"}", b"]", b"\n")) if place >= 0),
              default=len(data))   # fmt: skip
    return data[:start] + dice.choice(TOKENS) + data[end:]


def fuzz(reader: Reader, count: int, seed: int = 0) -> Outcome:
    """Read ``count`` changed inputs, and see what happens."""
    dice, outcome, process = random.Random(f"{reader.name} {seed}"), Outcome(reader.name), psutil.Process()
    for good in reader.seeds:
        reader.read(good)   # a good input is read, or nothing is shown
    logging.disable()   # of libraries that report what they refuse
    before = process.memory_info().rss
    for number in range(count):
        data = change(dice.choice(reader.seeds), reader.seeds, dice)
        if reader.repair and dice.random() < 0.8:
            data = reader.repair(data)
        started = time.thread_time()
        try:
            reader.read(data)
        except reader.errors:
            outcome.refused += 1
        except Exception as error:
            if type(error).__module__.startswith("atelier."):
                outcome.refused += 1
            else:
                outcome.uncaught.setdefault(_where(error), data)
        seconds = time.thread_time() - started
        outcome.inputs, outcome.slowest = number + 1, max(outcome.slowest, seconds)
        outcome.slow += seconds > MOST_SECONDS
        if number % 100 == 0 or seconds > 0.1:
            outcome.growth = max(outcome.growth, process.memory_info().rss - before)
    logging.disable(logging.NOTSET)
    return outcome


def row(outcome: Outcome) -> dict[str, str | int]:
    """An outcome as a row of a table."""
    return {"reader": outcome.name, "inputs": f"{outcome.inputs:,}", "refused": f"{outcome.refused:,}",
            "uncaught": len(outcome.uncaught), "over 2 s": outcome.slow, "slowest (s)": f"{outcome.slowest:.2f}",
            "memory grew (MB)": f"{max(0, outcome.growth) / 1e6:.0f}"}   # fmt: skip


def _where(error: Exception) -> str:
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__} in {where}: {str(error)[:80]}"


def with_length(header: bytes) -> bytes:
    """A safetensors file whose first eight bytes fit its header: what is behind the old ones, if there are any."""
    body = header[8:]
    end = body.rfind(b"}") + 1 or len(body)
    return end.to_bytes(8, "little") + body


def safetensors(header: object, data: int = 0) -> bytes:
    """A safetensors file with zeros as its data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)
