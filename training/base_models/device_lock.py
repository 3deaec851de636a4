"""Who uses a device: one job at a time, and beside it what drawings have left in its memory.

A job holds the device's lock and says who it is, so that whoever waits can name it. A process that keeps a base model
in the device's memory for the next drawing holds a lock of its own while it does, and lets go when a job has begun. All
locks are in a folder of the person, the same for all of her homes; the kernel frees them when a process ends,
however it ends.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from atelier.adapters.core.parse import parse_json
from atelier.training.base_models.device import has_own_memory


@dataclass(frozen=True, slots=True)
class Job:
    """A job that uses a device."""

    name: str      # of what it makes
    folder: str    # of its run
    process: int   # its id

    def __str__(self) -> str:
        return f"“{self.name}” (process {self.process}, {self.folder})"


class DeviceLock:
    """The lock that lets one training at a time use a device, whichever process or home it belongs to."""

    def __init__(self, device: torch.device) -> None:
        self._path = _path(device, "lock")
        self._lock = FileLock(self._path, timeout=0, thread_local=False)

    def acquire(self, name: str, folder: Path) -> bool:
        """Take the device for a job; False where another one has it. Never waits."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        own = Job(name, str(folder), os.getpid())
        self._path.with_suffix(".json").write_text(json.dumps(asdict(own)), encoding="utf-8")
        return True

    def release(self) -> None:
        """Give the device up for the next job; nothing happens where it was not taken."""
        if self._lock.is_locked:   # in a group of processes only the main one has taken it
            self._path.with_suffix(".json").unlink(missing_ok=True)
            self._lock.release()


def running_job(device: torch.device) -> Job | None:
    """The job that uses a device now; one that ended without a word is none."""
    path = _path(device, "lock")
    try:
        job = Job(**parse_json(path.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    try:
        with FileLock(path, timeout=0):   # nobody has it
            path.with_suffix(".json").unlink(missing_ok=True)
    except Timeout:
        return job
    except OSError:
        pass
    return None


class Residency:
    """A mark that this process keeps something in a device's memory which it could do without."""

    def __init__(self, device: torch.device) -> None:
        # The thread that draws sets it, the one that watches for jobs removes it.
        self._lock = FileLock(_path(device, f"{os.getpid()}.drawing"), timeout=0, thread_local=False)

    def begin(self) -> None:
        """Set the mark; a second call changes nothing."""
        with suppress(Timeout):   # another part of this process has said so
            self._lock.acquire()

    def end(self) -> None:
        """Remove the mark, if this process has set it."""
        if self._lock.is_locked:
            self._lock.release(force=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)


def is_occupied(device: torch.device) -> bool:
    """Whether another process keeps something there for its next drawing."""
    others = _path(device, "").parent.glob(_path(device, "*.drawing").name)
    own = _path(device, f"{os.getpid()}.drawing")
    return any(_is_held(path) for path in others if path != own)


def _is_held(path: Path) -> bool:
    """Whether a process holds a mark; one that was left behind is removed."""
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
    except Timeout:
        return True
    return False


def _path(device: torch.device, suffix: str) -> Path:
    return _folder() / f"{_identity(device)}.{suffix}"


def _folder() -> Path:
    """The folder of this person's locks, where nobody else can write.

    Others may have taken the name in the temporary folder, where all may write; then it is one in her own.
    """
    # Not by name: in a container there may be none for the number.
    person = os.getuid() if hasattr(os, "getuid") else "me"
    folder = Path(tempfile.gettempdir()) / f"atelier-{person}"
    if not _make_private(folder):
        folder = Path.home() / ".cache" / "atelier"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _make_private(folder: Path) -> bool:
    """Make a folder that only this person can use; False if there is something else in its place."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    try:
        facts = folder.lstat()
    except FileNotFoundError:   # the temporary folder has just been emptied
        return False
    # On Windows the temporary folder is the person's own.
    return not hasattr(os, "getuid") or (
        stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077)


def _identity(device: torch.device) -> str:
    """The same for one card in all processes, whatever number it has there."""
    if not has_own_memory(device):
        return device.type
    if device.type != "cuda":
        return f"{device.type}-{device.index or 0}"
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"
