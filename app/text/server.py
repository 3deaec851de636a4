"""What the web server says: when it starts, when it can't, and at sign-in."""

from __future__ import annotations

from math import ceil

from atelier.adapters.core.byte_size import format_bytes

STARTING = "Starting Atelier: loading PyTorch and the pages. The address follows in a few seconds."
STARTING_TITLE = "Atelier is starting"
STARTING_HINT = "This page loads by itself in a few seconds."
SIGN_IN_TITLE = "Sign in to Atelier"
SIGN_IN = "The password is the value of ATELIER_PASSWORD on the server."
SIGN_IN_NOW = "Sign in"
SIGN_IN_FIRST = "Sign in first, or send a key: Authorization: Bearer KEY."
USER = "User"
PASSWORD = "Password"
WRONG_PASSWORD = "Wrong password."
PROXY_NEEDS_PASSWORD = ("With --proxy, other machines can reach Atelier, so it needs a password. Set one in the "
                        "environment variable ATELIER_PASSWORD, or omit --proxy.")
FROM_ANOTHER_SITE = "This request came from another website, so it was refused."
NOT_JSON = "Only application/json is accepted."
NO_FOREIGN_ADDRESSES = "Atelier fetches nothing from other addresses."
NOT_OFFERED = "Atelier does not offer this."
FAILED = "This request could not be carried out. The server's log says why."
TOO_MANY_REQUESTS = "Too many requests from this address. Wait a second."
LENGTH_NEEDED = "The request needs a Content-Length header."
BODY_TOO_LARGE = "The request is too large. Upload files instead."
NO_ROOM_FOR_UPLOAD = "The server's disk has no room for this upload. Free some space there and try again."


NO_MCP = "The package mcp is not installed. Install it with: pip install 'mcp>=1.21,<2', or omit --mcp."


def needs_password(host: str) -> str:
    """Why a server is not opened to the network."""
    return (f"With --host {host}, other machines could reach Atelier, so it needs a password. Set one in the "
            "environment variable ATELIER_PASSWORD, or omit --host to serve only this machine.")


def wait_to_sign_in(seconds: float) -> str:
    """Shown after too many wrong passwords.

    >>> wait_to_sign_in(0.3), wait_to_sign_in(120)
    ('Too many wrong passwords. Try again in 1 s.', 'Too many wrong passwords. Try again in 2 min.')
    """
    wait = f"{ceil(seconds)} s" if seconds <= 90 else f"{ceil(seconds / 60)} min"
    return f"Too many wrong passwords. Try again in {wait}."


def too_many_uploads(count: int) -> str:
    """Shown when the upload folder holds too many files.

    >>> too_many_uploads(20_000)
    'There are 20,000 recent uploads, which is the limit. Try again tomorrow, or restart Atelier.'
    """
    return f"There are {count:,} recent uploads, which is the limit. Try again tomorrow, or restart Atelier."


def uploads_full(taken: float, most: float) -> str:
    """Shown when all uploads together are too large.

    >>> uploads_full(9_500_000_000, 10_000_000_000)
    'Recent uploads take 9.5 GB of 10 GB, so there is no room for another. Try again tomorrow, or restart Atelier.'
    """
    return (f"Recent uploads take {format_bytes(taken)} of {format_bytes(most)}, so there is no room for another. "
            "Try again tomorrow, or restart Atelier.")


def cannot_listen(host: str, port: int, reason: str) -> str:
    """Why a port could not be used."""
    return (f"Atelier can't listen on {host}, port {port}: {reason}. Choose another port with --port, or omit --port "
            "to use the first free one.")


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds a server."""
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def served_at(host: str, port: int) -> str:
    """The address of the Studio, once it is ready."""
    return f"Atelier is open at {address(host, port)}  (press Ctrl+C to stop)"


def already_served(home: str, where: str) -> str:
    """Why a second server is not started on a home.

    >>> already_served("~/atelier", "http://127.0.0.1:7860")
    'Atelier is already open for ~/atelier at http://127.0.0.1:7860. Use that address, or choose another home \
with --home.'
    """
    at = f" at {where}. Use that address" if where else ". Wait until it prints its address"
    return f"Atelier is already open for {home}{at}, or choose another home with --home."
