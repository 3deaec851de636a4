"""A page that stands at the server's address while the app is still being loaded, and reloads itself until it is there.

Loading takes several seconds, more on a busy machine. Whoever opens the address meanwhile would see nothing at all.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from atelier.app.text import server as words

_POLL_SECONDS = 0.1
_READ_SECONDS = 1.0
_MAX_REQUEST_BYTES = 65_536
_PAGE = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="1">
<meta name="viewport" content="width=device-width"><title>{words.STARTING_TITLE}</title>
<style>:root {{ color-scheme: light dark }} body {{ display: grid; place-content: center; gap: 8px; min-height: 90vh;
font: 18px/1.5 ui-sans-serif, system-ui, sans-serif; text-align: center }} h1 {{ margin: 0; font-size: 28px }}
p {{ margin: 0 }}</style><main><h1>{words.STARTING_TITLE}</h1><p role="status">{words.STARTING_HINT}</p></main></html>
""".encode()
# 503, so that programs that ask whether the server is ready are told no.
_ANSWER = (b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html; charset=utf-8\r\nRetry-After: 1\r\n"
           b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n"
           b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
           b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(_PAGE) + _PAGE)   # fmt: skip


@contextmanager
def starting_page(listener: socket.socket) -> Iterator[None]:
    """Answer every request at a listening socket with the page; afterwards the socket is as it was before."""
    ready, timeout = threading.Event(), listener.gettimeout()
    listener.settimeout(_POLL_SECONDS)
    thread = threading.Thread(target=_answer_all, args=(listener, ready), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ready.set()
        thread.join()
        listener.settimeout(timeout)


def _answer_all(listener: socket.socket, ready: threading.Event) -> None:
    while not ready.is_set():
        with suppress(OSError):   # also: nobody came
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_READ_SECONDS)
                _answer(connection)


def _answer(connection: socket.socket) -> None:
    """Read a request's headers, because a connection closed with unread bytes is reset; then send the page."""
    request, until = b"", time.monotonic() + _READ_SECONDS   # in all: the app waits for the end of this thread
    while b"\r\n\r\n" not in request and len(request) < _MAX_REQUEST_BYTES and time.monotonic() < until:
        if not (received := connection.recv(4096)):
            return
        request += received
    connection.sendall(_ANSWER)
