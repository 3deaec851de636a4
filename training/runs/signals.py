"""Ctrl-C and SIGTERM: the first one asks a job to save and quit, the second one ends it at once.

A file of its own, because it is all that a run has to do with signals.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quit_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request to save and leave at the next step boundary."""
    quitting = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield quitting   # only the main thread gets signals; others are stopped through the control folder
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        quitting.set()
        signal.signal(number, before[signal.Signals(number)])   # the second signal acts at once

    for number in before:
        signal.signal(number, ask)
    try:
        yield quitting
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
