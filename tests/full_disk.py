"""A disk that is full at any moment of a training: it waits, continues by itself, and ends in the same weights."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from trial_runs import WRITES, Outcome, Place, Workshop, count_operations, make_place, refuse_space, start

from atelier.training.config.events import Paused, Preparing

_MOUNT_SIZE = 16_000_000


@dataclass(slots=True)
class FullDiskFigures:
    """What came of a series of trials."""

    trials: int = 0
    told: int = 0         # runs that said that the disk is full and that they continue
    alone: int = 0        # runs that went on by themselves when there was room
    resumed: int = 0      # the others, which ended with a sentence and were resumed
    tracebacks: int = 0   # runs with a traceback in their log
    different: int = 0    # not exactly one adapter, or other weights than those of the undisturbed run
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def refuse_every_write(workshop: Workshop, folder: Path, every: int = 1) -> FullDiskFigures:
    """One trial for each file operation that needs room (or each ``every``-th): it is refused once."""
    figures, began = FullDiskFigures(), time.monotonic()
    operations = count_operations(counted := make_place(workshop, folder / "counted"), WRITES)
    whole = counted.outcome()
    for number in range(1, operations + 1, every):
        place = make_place(workshop, folder / f"write-{number:04d}")
        (process := start(place, number, refuse_space, WRITES)).join()
        _finish(f"write {number} of {operations}", place, process, whole, figures)
    figures.seconds = time.monotonic() - began
    return figures


def fill_disks(workshop: Workshop, folder: Path, trials: int, seed: int = 0) -> FullDiskFigures:
    """Trials on a small disk of their own (tmpfs, which only root can make) that is full until the run waits."""
    figures, began = FullDiskFigures(), time.monotonic()
    count_operations(counted := make_place(workshop, folder / "counted"))
    whole, used = counted.outcome(), sum(path.stat().st_size for path in counted.folder.rglob("*"))
    seconds = time.monotonic() - began
    for number in range(trials):
        room = random.Random(f"{seed}-{number}").randrange(used)
        with _small_disk(folder / f"disk-{number:04d}") as disk:
            place = make_place(workshop, disk / "home")
            filler = disk / "filler"
            filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
            process = start(place)
            process.join(2 * seconds + 2)
            filler.unlink()
            process.join(60)
            _finish(f"disk {number} with {room} bytes free", place, process, whole, figures)
    figures.seconds = time.monotonic() - began
    return figures


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_MOUNT_SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether small disks can be made here."""
    try:
        with _small_disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _finish(trial: str, place: Place, process: BaseProcess, whole: Outcome, figures: FullDiskFigures) -> None:
    alone = process.exitcode == 0
    if not alone:
        process.kill()
        process.join()
        start(place).join()
    said = (place.folder / "errors.txt").read_text(encoding="utf-8")
    found = place.outcome()
    waited = any(isinstance(event, Paused | Preparing) and "continues by itself" in str(event)
                 for _, event in place.run.events())   # fmt: skip
    different = found.adapters != 1 or found.tensors != whole.tensors or found.losses != whole.losses
    figures.trials += 1
    figures.told += waited
    figures.alone += alone
    figures.resumed += not alone and found.state == "done"
    figures.tracebacks += "Traceback" in said
    figures.different += different
    if different or "Traceback" in said or found.state != "done":
        figures.faults.append(f"{trial}: {found.adapters} adapters, {found.state}; {said[-2000:]}")
