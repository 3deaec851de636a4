"""How signals end the server: also while it loads, and always together with the worker that it started."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def end_by_signals() -> None:
    """Let SIGTERM and SIGHUP end the program as an exit does, so that every context is left and the worker ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    hang_up = getattr(signal, "SIGHUP", None)   # the terminal closed; not on Windows
    if hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:   # as under nohup
        # Once Uvicorn runs, it answers SIGTERM by itself, and knows no SIGHUP.
        signal.signal(hang_up, lambda *_: signal.raise_signal(signal.SIGTERM))


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals that end the program wait for the end of a block: a process that is being started has no name yet."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)
