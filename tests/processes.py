"""Processes of a test, and waiting for what they do."""

from __future__ import annotations

import multiprocessing
import socket
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess


def forked(target: Callable[..., None], *args: object) -> BaseProcess:
    """Start a fork, because it needs no imports: a dozen workers would spend a minute on them. It computes nothing."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):   # of forking beside threads
        process.start()
    return process


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is so; the limit only ends a test that has failed."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)
