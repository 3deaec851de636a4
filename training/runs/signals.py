"""SIGINT (Ctrl-C), SIGTERM and SIGHUP: the first one asks a job to save and quit, the second one ends it at once.

A file of its own, because it is all that a run has to do with signals.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_HANG_UP = [signal.Signals.SIGHUP] if hasattr(signal.Signals, "SIGHUP") else []   # the terminal closed; not on Windows


@contextmanager
def quit_signals() -> Iterator[threading.Event]:
    """Turn the first of these signals into a request to save and leave at the next step boundary."""
    quitting = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield quitting   # only the main thread gets signals; others are stopped through the control folder
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *_HANG_UP)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}   # as under nohup

    def ask(number: int, _frame: object) -> None:
        """Set the request and give this signal its former meaning back."""
        quitting.set()
        signal.signal(number, before[signal.Signals(number)])   # the second signal acts at once

    for number in before:
        signal.signal(number, ask)
    try:
        yield quitting
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
