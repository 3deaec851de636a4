"""Room on a disk: how much is left, and whether an error says that there was none."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from atelier.adapters.core.byte_size import format_bytes

RESERVE = 50_000_000   # bytes that stay free, for events, previews and whatever else runs on the machine
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(rf"os error ({'|'.join(map(str, _FULL))})\b")   # as safetensors quotes the system


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of Python, safetensors or torch means that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return bool(_FULL_TEXT.search(str(error))) or "No space left on device" in str(error)


def space_shortage(folder: Path, needed: int) -> str:
    """A sentence where less than ``needed`` bytes and the reserve are free on the disk of a folder; else empty."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:   # gone, which is said when something is written
        return ""
    if free >= needed + RESERVE:
        return ""
    return (f"Only {format_bytes(free)} are free on the disk with {folder}, and {format_bytes(needed + RESERVE)} are "
            "needed. Free some space.")
