"""Grids that are being drawn by this process, whatever becomes of the pages that show them."""

from __future__ import annotations

import logging
import threading

from atelier.app.services.engine import Engine
from atelier.app.services.grid import draw_grid
from atelier.app.store.home import Home, HomeError


class GridDrawings:
    """Draws grids in threads of their own: a page that is closed or loaded again changes nothing."""

    def __init__(self, home: Home, engine: Engine) -> None:
        self._home, self._engine = home, engine
        self._running: dict[str, threading.Event] = {}   # by the grid's id: set when it is to stop
        self._lock = threading.Lock()

    def start(self, id: str) -> threading.Thread | None:
        """Draw what is missing in a grid, beside what is drawn otherwise; None where it is being drawn already."""
        with self._lock:
            if id in self._running:
                return None
            self._running[id] = stopped = threading.Event()
        thread = threading.Thread(target=self._draw, args=(id, stopped), daemon=True)
        thread.start()
        return thread

    def stop(self, id: str) -> None:
        """Let a grid end between two steps; it can be started again."""
        with self._lock:
            if id in self._running:
                self._running[id].set()

    def is_running(self, id: str) -> bool:
        """Whether a grid is being drawn."""
        return id in self._running

    def _draw(self, id: str, stopped: threading.Event) -> None:
        try:
            for _ in draw_grid(self._home, self._engine, id, lambda: not stopped.is_set()):
                if stopped.is_set():
                    return
        except HomeError as error:   # the disk is full, say: the page shows what there is, and offers to go on
            logging.getLogger(__name__).error("grid %s: %s", id, error)
        finally:
            with self._lock:
                del self._running[id]
