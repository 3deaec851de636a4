"""Layout on the command line: sheets of names and values, and columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atelier.adapters.core.byte_size import format_bytes


def sheet(values: Mapping[str, Any]) -> str:
    """Names and values, one a line; tables inside are indented."""
    lines: list[str] = []
    width = max((len(name) for name, value in values.items() if not isinstance(value, Mapping)), default=0)
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = sheet(value)
            lines += [f"{name.replace('_', ' ')}:", *(f"  {line}" for line in inner.splitlines())] if inner else []
        elif value not in ("", None):
            text = format_bytes(value) if name.endswith("bytes") else str(value)
            lines.append(f"{name.replace('_', ' ').removesuffix(' bytes'):{width}}  {text}")
    return "\n".join(lines)


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows as lines, with the cells of each column aligned."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in table)
    return "\n".join(line.rstrip() for line in lines)
