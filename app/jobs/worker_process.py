"""The worker process that a server starts beside itself, and who ends it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import Timeout

from atelier.adapters.core.atomic_write import atomic_write
from atelier.app.jobs.jobs import worker_alive, worker_lock
from atelier.app.store.home import Home

_SECONDS_TO_END = 30.0


@contextmanager
def worker_for_server(home: Home) -> Iterator[None]:
    """A worker while a server runs, unless one is at work on this home already.

    It has a session of its own, so that neither Ctrl+C at the server nor a crash of it touches the worker: what waits
    in the queue goes on. One that a crashed server left behind is ended by the next server that closes; one that a
    person started is hers to end.
    """
    own = None if worker_alive(home) else _start(home)
    try:
        yield
    finally:
        # Only the worker stops; a training that is under way runs in a process of its own and goes on.
        if own is None:
            stop_orphaned_worker(home)
        else:
            own.terminate()
            own.wait()


def stop_orphaned_worker(home: Home) -> None:
    """End the worker that a server started, if that server is gone and the worker is not."""
    worker, server = _recorded_processes(home)
    if worker is None or server is not None:
        return
    with suppress(psutil.NoSuchProcess, Timeout):
        worker.terminate()
        # The lock tells that it has ended; its place in the process table may wait for a parent that never looks.
        with worker_lock(home, seconds=_SECONDS_TO_END):
            pass


def _start(home: Home) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "atelier.app.cli.main", "worker", "--home", str(home.path)]
    with (home.state / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    # A number alone names another process some day; with the time of its start it names this one.
    both = (psutil.Process(process.pid), psutil.Process())
    atomic_write(_record_file(home), json.dumps([[one.pid, one.create_time()] for one in both]).encode())
    return process


def _recorded_processes(home: Home) -> list[psutil.Process | None]:
    """The worker that a server started last, and that server; None for one that has ended."""
    try:
        processes = json.loads(_record_file(home).read_text(encoding="utf-8"))
        return [_running_process(pid, started) for pid, started in processes]
    except (OSError, ValueError, TypeError):
        return [None, None]


def _running_process(pid: int, started: float) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _record_file(home: Home) -> Path:
    return home.state / "worker.json"
