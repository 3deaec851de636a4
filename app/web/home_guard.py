"""One server for a home, and what a server answers while its home is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, explain_write_errors, home_problem
from atelier.app.text import server as words


class HomeBusyError(ValueError):
    """Another server serves the home; the message has its address."""


@contextmanager
def only_server(home: Home) -> Iterator[None]:
    """Be the one server of a home; the kernel frees the lock when the process dies, however it dies.

    Raises:
        HomeBusyError: there is one already.
        HomeError: the home can't be written.
    """
    lock = FileLock(home.state / "server.lock", timeout=0)
    with explain_write_errors(home.state):
        try:
            lock.acquire()
        except Timeout:
            raise HomeBusyError(words.already_served(str(home.path), _address(home))) from None
    try:
        yield
    finally:
        _address_file(home).unlink(missing_ok=True)
        lock.release()


def note_address(home: Home, host: str, port: int) -> None:
    """Write down where the home is served, for a second server to name."""
    atomic_write(_address_file(home), json.dumps({"address": words.address(host, port)}).encode())


def _address(home: Home) -> str:
    """Where the home is served; empty when it was not said yet, or by a damaged file."""
    try:
        return str(parse_json(_address_file(home).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _address_file(home: Home) -> Path:
    return home.state / "server.json"


class HomePresent:
    """Answer with a sentence while the home is gone, as when its disk was detached; go on by itself when it is back."""

    def __init__(self, app: ASGIApp, home: Home) -> None:
        self.app, self.home = app, home

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = home_problem(self.home) if scope["type"] == "http" else ""
        if not problem:
            return await self.app(scope, receive, send)
        is_page = "text/html" in Headers(scope=scope).get("accept", "")
        answer = PlainTextResponse(problem, 503) if is_page else JSONResponse({"detail": problem}, 503)
        await answer(scope, receive, send)
