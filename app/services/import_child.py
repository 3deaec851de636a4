"""Foreign adapter files are opened in a child process, with limits where the system has them.

What a header may claim is checked before memory is taken (`adapters/formats/safetensors_header.py`). Should something
be overlooked there, or a library stumble over a file, it costs this child and not the server: its memory and processor
time are limited, and it gives up the network where Linux lets a process do so.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atelier.app.store.home import Home

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000   # of unshare(2)
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ATELIER_PASSWORD")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What opening one file may take, beyond what the process has when it starts on it."""

    memory: int = 2_000_000_000      # bytes
    memory_per_byte: float = 8.0     # of the file: its values as float32, and what is computed from them
    seconds: float = 60.0            # of processor time
    bytes_per_second: float = 5e6    # of the file


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of one file."""

    path: Path
    name: str                      # of the adapter or the textual inversion; empty if it was refused
    notes: tuple[str, ...] = ()    # what a person should know, in sentences
    reason: str = ""               # why it was refused
    family: str = ""               # of the base models that it fits


def import_files(
    home: Home, paths: Sequence[Path], name: str = "", limits: ChildLimits | None = None
) -> Iterator[ImportResult]:
    """Take adapters and textual inversions of any tool into the library, one by one; yields what became of each.

    Args:
        home: whose library.
        paths: the files.
        name: what to call the adapter, where there is one file; empty means as the file is called.
        limits: what each may take.
    """
    left = [path.absolute() for path in paths]
    while left:
        task = {"home": str(home.path), "name": name, "paths": list(map(str, left)),
                "limits": asdict(limits or ChildLimits())}   # fmt: skip
        environment = {key: value for key, value in os.environ.items() if key not in _SECRETS}
        with subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env=environment, text=True) as child:   # fmt: skip
            assert child.stdin and child.stdout
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps(task))
                child.stdin.close()
            for line in child.stdout:
                yield _result(left.pop(0), json.loads(line))
            code = child.wait()
        if left:   # it ended before its work did
            yield ImportResult(left[0], "", reason=f"{left.pop(0).name} {_end(code)}")


def _result(path: Path, said: dict[str, Any]) -> ImportResult:
    return ImportResult(path, said["name"], tuple(said["notes"]), said["reason"], said["family"])


def _end(code: int) -> str:
    """Why a child ended that said nothing more, as the end of a sentence."""
    if code == -getattr(signal, "SIGXCPU", 0):
        return ("was not opened, because it takes more processor time than any adapter of its size. It is damaged or "
                "malicious.")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return (f"was not opened, because the process that read it ended ({how}). It is damaged, malicious, or too large "
            "for this machine.")


def main() -> None:
    """Do the work of :func:`import_files`: the task comes in as JSON, a line of JSON goes out for each file."""
    leave_network()
    task = json.load(sys.stdin)
    # Before the limits, which count from here.
    from atelier.adapters.formats.safetensors_header import FileError
    from atelier.app.services.import_export import import_any, imported_sources
    from atelier.app.store.home import HomeError

    home, limits = Home(Path(task["home"])), ChildLimits(**task["limits"])
    known = imported_sources(home)
    for path in map(Path, task["paths"]):
        said: dict[str, Any] = {"name": "", "family": "", "notes": [], "reason": ""}
        try:
            limit(limits, path.stat().st_size if path.is_file() else 0)
            taken = import_any(home, path, task["name"], known)
            if taken.source:
                known[taken.source] = taken.name
            said |= {"name": taken.name, "family": taken.family, "notes": taken.notes}
        except (FileError, HomeError) as error:
            said["reason"] = str(error)
        except (MemoryError, RuntimeError) as error:   # torch says it with a RuntimeError
            said["reason"] = (f"{path.name} was not opened, because it needs more memory than any adapter of its size "
                              f"({error}).")
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def leave_network() -> None:
    """Give up the network, where Linux lets a process without rights do so; before other threads are started."""
    if sys.platform != "linux":
        return
    user = os.getuid()
    if ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK) == 0:
        with suppress(OSError):
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")


def limit(limits: ChildLimits, size: int) -> None:
    """Limit memory and processor time of this process for a file of ``size`` bytes."""
    with suppress(ImportError, OSError, ValueError):   # Windows has neither, macOS no limit of memory
        import resource

        import psutil

        times = resource.getrusage(resource.RUSAGE_SELF)
        seconds = times.ru_utime + times.ru_stime + limits.seconds + size / limits.bytes_per_second
        _set(resource.RLIMIT_CPU, int(seconds) + 1)
        memory = psutil.Process().memory_info().vms + limits.memory + limits.memory_per_byte * size
        _set(resource.RLIMIT_AS, int(memory))


def _set(which: int, value: int) -> None:
    import resource

    _, most = resource.getrlimit(which)
    resource.setrlimit(which, (value if most == resource.RLIM_INFINITY else min(value, most), most))


if __name__ == "__main__":
    main()
