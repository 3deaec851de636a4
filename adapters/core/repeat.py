"""Doing something again and again in a thread while a block of code runs, here because two rooms need it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``action`` every so many seconds while the context is open; it is not running any more when that has ended.

    The first call comes after the first wait. ``action`` handles its own errors: one that it raises ends the calls.
    """
    ended = threading.Event()

    def repeat() -> None:
        """Call it until the context ends."""
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
