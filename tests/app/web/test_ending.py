"""A server that is ended by a signal ends its worker, at whatever moment the signal comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from atelier.app.web.ending import signals_held

# A server that loads for ever, and whose worker is a process that does nothing; says when it has come so far.
LOADING = """
import subprocess, sys, time
from pathlib import Path
from atelier.app.jobs import worker_process
from atelier.app.store.home import open_home
from atelier.app.web import server

def start(home):
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    print(process.pid, flush=True)
    if sys.argv[2] == "starting":
        time.sleep(1)   # the signal comes now
    return process

def load(*_):
    print("loading", flush=True)
    time.sleep(60)

worker_process._start = start
server._load = load
server.serve(open_home(Path(sys.argv[1])))
"""


@pytest.mark.parametrize(("number", "moment"), [
    (signal.SIGTERM, "loading"), *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        (signal.SIGHUP, "loading"), (signal.SIGINT, "loading"), (signal.SIGTERM, "starting")))])
def test_a_server_that_still_loads_ends_with_its_worker(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    command = [sys.executable, "-c", LOADING, str(tmp_path / "home"), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout and server.stderr
        worker = psutil.Process(int(server.stdout.readline()))
        assert moment == "starting" or server.stdout.readline() == "loading\n"
        server.send_signal(number)
        assert server.wait() == (0 if number != signal.SIGINT else -number)
        assert number == signal.SIGINT or server.stderr.read() == ""
    assert not worker.is_running()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl+C as in a terminal: what runs in the background of a shell ignores it from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_waits_for_the_end_of_what_may_not_be_cut() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), signals_held():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done and signal.getsignal(signal.SIGINT) == signal.default_int_handler
