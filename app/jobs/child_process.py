"""The child process of a run: start it, wait for it, and record why it ended where it could not do so itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from atelier.training.config.events import Failed, Finished, Interrupted, Preparing, Stopped
from atelier.training.config.run_folder import RunFolder

Command = Callable[[RunFolder, Path, bool], list[str]]   # run, folder of adapters, resume → command line

ENDED_BY_REQUEST = 3     # the child's exit code after it was asked to end
BUSY = 4                 # the child's exit code where another process works on the run
WATCH_SECONDS = 0.5
GRACE_SECONDS = 1.0      # a process that has removed its heartbeat may still write its final event
STALE_SECONDS = 30.0     # a process with an old heartbeat may still run on an overloaded machine
_LOG_TAIL_BYTES = 4096


def training_command(run: RunFolder, adapters: Path, resume: bool) -> list[str]:
    """The command line of the process that trains a run."""
    command = [sys.executable, "-m", "atelier.training.runs.run", str(run.path), "--adapters", str(adapters)]
    return [*command, "--resume"] if resume else command


def has_final_event(run: RunFolder) -> bool:
    """Whether the last event of a run says that it is over."""
    events = run.events()
    return bool(events) and isinstance(events[-1][1], Finished | Failed | Stopped | Interrupted)


def run_child(
    run: RunFolder, adapters: Path, command: Command, environment: Mapping[str, str] = MappingProxyType({}),
    lost: threading.Event | None = None,
) -> None:   # fmt: skip
    """Start the child process of a run and wait until it ends; write the final event if it has not.

    The child has a session of its own, so that it continues when this process and its terminal end. When ``lost`` is
    set, another machine has the run: then the child is killed, and nothing is written.
    """
    resume = bool(run.events())
    # The heartbeat covers the seconds in which the child imports its libraries and writes nothing.
    with run.heartbeat():
        run.append(Preparing("Restarting the training process" if resume else "Starting the training process"))
        try:
            with (run.path / "log.txt").open("ab") as log:
                child = subprocess.Popen(
                    command(run, adapters, resume), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
                )   # fmt: skip
            code = child.wait() if lost is None else _wait_unless_lost(child, lost)
        except OSError as error:
            run.append(Failed(f"The training process could not be started: {error}."))
            return
    if code == BUSY:
        (run.path / "heartbeat").touch()   # the other process's, which was removed here
        watch_child(run)
    elif not has_final_event(run) and not (lost and lost.is_set()):
        run.append(exit_event(code, run.path / "log.txt"))


def _wait_unless_lost(child: subprocess.Popen[bytes], lost: threading.Event) -> int:
    while True:
        try:
            return child.wait(WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            if lost.is_set():
                os.killpg(child.pid, signal.SIGKILL)


def watch_child(run: RunFolder) -> None:
    """Wait for a child that another worker started; write the final event if it has not."""
    seen = time.monotonic()
    while True:
        if run.is_alive():
            seen = time.monotonic()
        elif has_final_event(run):
            return
        elif time.monotonic() - seen > (STALE_SECONDS if (run.path / "heartbeat").exists() else GRACE_SECONDS):
            break
        time.sleep(WATCH_SECONDS)
    run.append(Interrupted("The training process ended without giving a reason. Resume it to continue."))


def exit_event(code: int, log: Path) -> Interrupted | Failed:
    """The final event of a child that ended without writing one.

    Args:
        code: its exit code; below 0, or above 128 as shells write it, it stands for a signal.
        log: its output; the last line is quoted where the code says nothing.
    """
    number = -code if code < 0 else max(code - 128, 0)
    if number == signal.SIGKILL:
        return Interrupted("The training process was killed, most likely because memory ran out. Close other programs "
                           "and resume it.")
    if number:
        return Interrupted(f"The training process was ended by a signal ({_signal_name(number)}). Resume it to "
                           "continue.")
    if code == ENDED_BY_REQUEST:
        return Interrupted("The training process was asked to end, and saved its state. Resume it to continue.")
    line = _last_line(log)
    return Failed(f"The training process failed: {line}" if line else ("The training process ended with exit code "
                                                                       f"{code}."))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[-400:]
