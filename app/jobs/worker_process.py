"""The worker process that a server starts, and that it or a later server ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import Timeout

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.parse import parse_json
from atelier.adapters.core.repeat import repeated
from atelier.app.jobs.jobs import worker_alive, worker_lock
from atelier.app.store.home import Home

RESTART_SECONDS = 10.0   # until a worker that died is missed
_SECONDS_TO_END = 30.0
_SERVER = "ATELIER_SERVER"   # says in the environment of a worker which server started it


@contextmanager
def worker_for_server(home: Home) -> Iterator[None]:
    """Run a worker while a server runs, unless one is running for this home already.

    The worker has a session of its own, so that neither Ctrl+C at the server nor a crash of the server ends it. A
    worker that a crashed server has left behind is ended when the next server ends; one that a person has started is
    left running. Where the worker dies, another one is started. A home that several machines share has the workers that
    are started on them.
    """
    if home.queue:
        yield
        return
    started = [] if worker_alive(home) else [_start(home)]
    try:
        with repeated(lambda: _keep_worker(home, started), RESTART_SECONDS):
            yield
    finally:
        # Only the worker ends; a training has a process of its own and continues.
        if not started:
            stop_orphaned_worker(home)
        else:
            started[-1].terminate()
            started[-1].wait()


def _keep_worker(home: Home, started: list[subprocess.Popen[bytes]]) -> None:
    """Start a worker if there is none; jobs would wait for ever without one."""
    is_starting = bool(started) and started[-1].poll() is None
    with suppress(OSError):   # the home is gone, which the page says
        if not is_starting and not worker_alive(home):
            started.append(_start(home))


def stop_orphaned_worker(home: Home) -> None:
    """End the worker that a server started, if the server has ended and the worker is still running."""
    worker, server = _recorded_processes(home)
    if worker is None or server is not None:
        return
    with suppress(psutil.NoSuchProcess, Timeout):
        worker.terminate()
        # The lock shows that it has ended; as a process it may remain as a zombie until its parent ends.
        with worker_lock(home, seconds=_SECONDS_TO_END):
            pass


def _start(home: Home) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "atelier.app.cli.main", "worker", "--home", str(home.path)]
    with (home.state / "worker.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                env={**os.environ, _SERVER: describe_server()})   # fmt: skip


def describe_server() -> str:
    """This process, as the worker that it starts is told of it. Process ids are used again, with other start times."""
    server = psutil.Process()
    return f"{server.pid} {server.create_time()}"


def record_worker(home: Home) -> None:
    """Write down that this process is the worker, and which server started it; nothing if a person did.

    The worker does so itself, once it holds the lock: a server may be killed before it could, or start a second one.
    """
    server, worker = os.environ.pop(_SERVER, "").split(), psutil.Process()
    if len(server) == 2:
        record = [[worker.pid, worker.create_time()], [int(server[0]), float(server[1])]]
        with suppress(OSError):   # a full disk: the worker works all the same
            atomic_write(_record_file(home), json.dumps(record).encode())


def _recorded_processes(home: Home) -> tuple[psutil.Process | None, psutil.Process | None]:
    """The worker that a server started last, and that server; None for each that has ended."""
    try:
        processes = parse_json(_record_file(home).read_text(encoding="utf-8"))
        worker, server = (_running_process(pid, started) for pid, started in processes)
        return worker, server
    except (OSError, ValueError, TypeError):
        return None, None


def _running_process(pid: int, started: float) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess, OverflowError):
        process = psutil.Process(pid)
        if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _record_file(home: Home) -> Path:
    return home.state / "worker.json"
