"""The address that the web server listens on; imports nothing that takes time."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from atelier.app.text import server as words

FIRST_PORT = 7860
TRIED_PORTS = 40


class ServeError(ValueError):
    """The server can't start; the message says why and what to do."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Take a port; 0 takes the first free one from 7860 on.

    Raises:
        ServeError: the port is in use, or the host is none of this machine's.
    """
    for candidate in [port] if port else [*range(FIRST_PORT, FIRST_PORT + TRIED_PORTS), 0]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            taken = isinstance(error, PermissionError) or error.errno == errno.EADDRINUSE
            if not taken or port:
                raise ServeError(words.cannot_listen(host, candidate, error.strerror or str(error))) from None
    raise AssertionError("port 0 is never taken")
