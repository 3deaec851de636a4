"""Small trainings in forked processes that are killed, or find no room on the disk, at a chosen file operation.

A fork needs no imports, so a trial costs about a second. Python tells every file operation before it happens
(``sys.addaudithook``), which is where a process is killed or an error is raised.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_base import write_pictures, write_tiny_base

from atelier.adapters.core import disk_space
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder, status
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs import run as run_module

OPERATIONS = frozenset(["open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.fsync"])
WRITES = frozenset(["open", "os.rename", "os.mkdir", "os.fsync"])   # that a full disk refuses
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Act = Callable[[], None]   # what happens before a file operation


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where trials take place: a base model, pictures, and the result of the run that nothing disturbs."""

    folder: Path

    @property
    def config(self) -> TrainConfig:
        """Eight steps with a validation, a checkpoint every three and an average."""
        return TrainConfig(
            name="rex", subject="fox", pictures=str(self.folder / "pictures"), base=str(self.folder / "base"), steps=8,
            batch=2, prior_weight=0.0, lr=0.05, warmup=0, validate_every=4, preview_every=0, checkpoint_every=3,
            precision="fp32", adapter={"rank": 2}, ema=0.5,
        )   # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of a run when it is over."""

    adapters: int                 # files in the library
    state: str                    # of the run
    tensors: dict[str, bytes]     # of its adapter
    losses: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Place:
    """One trial's own folder: a run, the library, and the folder for device locks."""

    folder: Path

    @property
    def run(self) -> RunFolder:
        """The run of this trial."""
        return RunFolder(self.folder / "runs" / "20250101-rex")

    @property
    def adapters(self) -> Path:
        """The library."""
        return self.folder / "adapters"

    def outcome(self) -> Outcome:
        """What is left when the run is over."""
        files = list(self.adapters.glob("*.safetensors"))
        tensors = {name: value.numpy().tobytes() for file in files for name, value in load_file(file).items()}
        found = status(self.run)
        return Outcome(len(files), found.state, tensors, found.losses)


def make_workshop(folder: Path) -> Workshop:
    """Write the base model and the pictures."""
    torch.set_num_threads(1)   # threads do not survive a fork
    write_tiny_base(folder / "base")
    write_pictures(folder / "pictures")
    return Workshop(folder)


def make_place(workshop: Workshop, folder: Path) -> Place:
    """A new run in a folder of its own."""
    place = Place(folder)
    place.adapters.mkdir(parents=True)
    (folder / "locks").mkdir()
    RunFolder.create(place.run.path, workshop.config)
    return place


def start(place: Place, at: int = 0, act: Act = lambda: None, operations: frozenset[str] = OPERATIONS) -> BaseProcess:
    """Train in a forked process, from the checkpoint where there is one; ``act`` happens at file operation ``at``."""
    process = multiprocessing.get_context("fork").Process(target=_train, args=(place, at, act, operations))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):   # of forking beside threads
        process.start()
    return process


def count_operations(place: Place, operations: frozenset[str] = OPERATIONS) -> int:
    """Train to the end and count the file operations."""
    counted = multiprocessing.get_context("fork").Value("i", 0)

    def count() -> None:
        counted.value += 1

    process = start(place, -1, count, operations)
    process.join()
    assert process.exitcode == 0, (place.folder / "errors.txt").read_text()
    return counted.value


def kill_self() -> None:
    """As the kernel kills: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse_space() -> None:
    """As a full disk refuses."""
    raise OSError(errno.ENOSPC, "No space left on device")


def _train(place: Place, at: int, act: Act, operations: frozenset[str]) -> None:
    tempfile.tempdir = str(place.folder / "locks")   # the machine's own device lock may be taken
    run_module.WAIT_SECONDS, disk_space.RESERVE = 0.02, 0
    with (place.folder / "errors.txt").open("a") as errors, redirect_stderr(errors):
        if at:
            _hook(place, at, act, operations)
        try:
            events = list(run_module.run(place.run, place.adapters, resume=bool(place.run.events())))
        except OSError as error:   # as the job's process and the command line do: a sentence, and it can be resumed
            errors.write(f"Nothing can be written to the run's folder: {error}.\n")
            errors.close()
            os._exit(1)
    os._exit(0 if isinstance(events[-1], Finished) else 1)


def _hook(place: Place, at: int, act: Act, operations: frozenset[str]) -> None:
    """Call ``act`` before file operation ``at`` within the trial's folders, counted from 1; -1: before each."""
    numbers, own = itertools.count(1), (str(place.run.path), str(place.adapters))

    def before(event: str, args: tuple[Any, ...]) -> None:
        if event not in operations or not args or not str(args[0]).startswith(own):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        if at in (-1, next(numbers)):
            act()

    fsync = os.fsync

    def audited_fsync(descriptor: int) -> None:   # the one operation that Python does not tell of
        before("os.fsync", (str(place.run.path),))
        fsync(descriptor)

    os.fsync = audited_fsync
    sys.addaudithook(before)
