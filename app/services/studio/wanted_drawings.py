"""Which drawing each open page still waits for: one of anything else is abandoned between two steps."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

MAX_PAGES = 1000        # remembered; those that asked longest ago are forgotten
SOON_SECONDS = 0.15     # two requests that a page sends together arrive within this time, in any order
REST_SECONDS = 0.5      # of a slider, after which it counts as released: arrow keys release nothing
_LOOK_SECONDS = 0.05


class WantedDrawings:
    """What each page asked for last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, Hashable] = OrderedDict()
        self._live: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def want(self, page: str, what: Hashable) -> None:
        """Note that a page waits for this from now on, and for nothing else."""
        _remember(self._last, page, what)

    def keep_live(self, page: str, ids: tuple[str, ...]) -> None:
        """Note which pictures a moving slider has drawn last: the next ones take their place."""
        _remember(self._live, page, ids)

    def live_pictures(self, page: str) -> tuple[str, ...]:
        """The ids of these pictures; several drawings of one page may be at work, so the page itself may not know."""
        return self._live.get(page, ())

    def stop(self, page: str) -> None:
        """Note that a page waits for nothing any more."""
        self.want(page, object())

    def wants(self, page: str, what: Hashable) -> bool:
        """Whether a page waits for this; a page that never asked waits for anything."""
        return self._last.get(page, what) == what

    def wants_soon(self, page: str, what: Hashable) -> bool:
        """The same, where the request that says so may still be on its way."""
        return self._stays(page, what, SOON_SECONDS, False)

    def rests(self, page: str, what: Hashable) -> bool:
        """Whether a page goes on waiting for this for a while; returns as soon as it does not."""
        return self._stays(page, what, REST_SECONDS, True)

    def _stays(self, page: str, what: Hashable, seconds: float, state: bool) -> bool:
        """Look until what a page wants is no longer as in ``state``, or the time is over; returns what it is then."""
        end = time.monotonic() + seconds
        while self.wants(page, what) == state and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        return self.wants(page, what)


def _remember(table: OrderedDict[str, Any], page: str, value: Any) -> None:
    table[page] = value
    table.move_to_end(page)
    while len(table) > MAX_PAGES:
        table.popitem(last=False)
