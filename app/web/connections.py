"""Connections: one that is slow to ask, or one too many from the same address, is closed.

Uvicorn waits for the headers of a request, and for the rest of a body that nobody reads any more, as long as the sender
likes. Some hundred connections that say nothing would then hold every file that the server may open.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from uvicorn.protocols.http.h11_impl import H11Protocol

from atelier.app.web.quotas import is_within, network_of

HEADER_SECONDS = 20.0      # for the headers of a request, from the moment the connection is there or the last one ended
MOST_FROM_ONE = 512        # connections of one address; a browser opens six
_FILES = 16_384            # that the server may have open, where the system lets it


class LimitedConnection(H11Protocol):
    """A connection of uvicorn's that is closed while no request is under way for too long."""

    proxies: Sequence[IPv4Network | IPv6Network] = ()   # everybody comes from their addresses
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:   # type: ignore[override]
        """Close it at once if the address has too many; else wait for a request."""
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.abort()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came; the time runs on unless it completed the headers of a request."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_one_too_many(self) -> bool:
        if self.client is None or is_within(self.client[0], self.proxies):
            return False
        address = network_of(self.client[0])
        clients = (getattr(connection, "client", None) for connection in self.connections)
        return sum(1 for client in clients if client and network_of(client[0]) == address) > MOST_FROM_ONE


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as the system lets it: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
