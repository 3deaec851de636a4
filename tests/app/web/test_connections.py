"""Connections that say nothing, slowly or in large numbers are closed, and no others."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from atelier.app.web import connections
from atelier.app.web.connections import LimitedConnection, allow_many_files
from atelier.app.web.listener import bind

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n"


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after twice the time that a sender has for its headers."""
    await asyncio.sleep(2 * connections.HEADER_SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(slow, http=LimitedConnection, ws="none", lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()
    listener.close()


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=60)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes it before it says something; a test that fails waits a minute."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("start", [b"", ASK[:9], ASK], ids=["nothing", "half a line", "no end"])
def test_whoever_is_slow_to_ask_is_cut_off(address: tuple[str, int], start: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(start)
        assert is_closed(connection)


def test_headers_that_trickle_are_cut_off(address: tuple[str, int]) -> None:
    with connect(address) as connection, pytest.raises(OSError):
        connection.sendall(ASK)
        while True:   # each line within the time, all together not
            connection.sendall(b"X: y\r\n")
            connection.settimeout(0.05)
            try:
                if connection.recv(1) == b"":
                    raise ConnectionResetError
            except TimeoutError:
                continue


def test_an_answer_may_take_longer_and_the_next_request_has_its_own_time(address: tuple[str, int]) -> None:
    with connect(address) as connection:
        for _ in range(2):
            connection.sendall(ASK + b"\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += connection.recv(1000) or pytest.fail("closed before the answer was there")
            assert answer.startswith(b"HTTP/1.1 200")
        assert is_closed(connection)


def test_a_body_that_nobody_reads_holds_no_connection(address: tuple[str, int]) -> None:
    with connect(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        while not connection.recv(1000).endswith(b"ok"):
            pass
        connection.settimeout(0.05)
        with pytest.raises((BrokenPipeError, ConnectionResetError, EOFError)):
            while True:   # what comes in would put off uvicorn's own end of the connection again and again
                connection.sendall(b"a")
                try:
                    if connection.recv(1) == b"":
                        raise EOFError
                except TimeoutError:
                    continue


def test_one_address_has_so_many_connections(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_FROM_ONE", 2)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 600)   # so that these stay, longer than the test waits
    first, second = connect(address), connect(address)
    with first, second:
        with connect(address) as third:
            assert is_closed(third)
        monkeypatch.setattr(LimitedConnection, "proxies", [ip_network("127.0.0.0/8")])
        monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
        with connect(address) as proxied:   # everybody comes through a proxy
            proxied.sendall(ASK + b"\r\n")
            assert proxied.recv(1000).startswith(b"HTTP/1.1 200")


def test_the_server_may_open_as_many_files_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    for soft, hard in ((1024, 4096), (1024, resource.RLIM_INFINITY), (1024, 10**6), (4096, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, pair=(soft, hard): pair)
        allow_many_files()
    assert limits == [(4096, 4096), (16_384, resource.RLIM_INFINITY), (16_384, 10**6)]
