"""What Ctrl-C and SIGTERM do to a job: the first is a request, the second an end."""

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
        yield quitting   # signals belong to the main thread; elsewhere the control folder does the job
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        quitting.set()
        signal.signal(number, before[signal.Signals(number)])   # whoever asks twice does not want to wait

    for number in before:
        signal.signal(number, ask)
    try:
        yield quitting
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
