"""Arguments of `atelier serve` and `atelier worker`."""

from __future__ import annotations

import argparse
import re
from ipaddress import IPv4Network, IPv6Network, ip_network


def add_serve(serve: argparse.ArgumentParser) -> None:
    """Add the arguments of `atelier serve`."""
    serve.add_argument("--host", default="127.0.0.1", metavar="H",
                       help="address to listen on (default: 127.0.0.1, this machine only)")
    serve.add_argument("--port", type=_port, default=0, metavar="P",
                       help="port to listen on (default: the first free one from 7860)")
    serve.add_argument("--open", action="store_true", help="open the Studio in a browser")
    serve.add_argument("--proxy", type=_network, action="append", default=[], metavar="ADDRESS",
                       help="address of a reverse proxy whose X-Forwarded headers are trusted; repeatable")
    serve.add_argument("--public-name", action="append", default=[], metavar="HOST",
                       help="host name under which browsers reach that proxy; repeatable")
    serve.add_argument("--root-path", type=_root_path, default="", metavar="PATH",
                       help="path under which the proxy shows Atelier, such as /atelier (default: none)")
    serve.add_argument("--mcp", action="store_true",
                       help="offer the named endpoints to language models as MCP tools (docs/api.md)")
    add_queue(serve)


def add_queue(command: argparse.ArgumentParser) -> None:
    """Add the address of a queue that several machines share."""
    command.add_argument("--queue", default="", metavar="URL",
                         help="Redis server where jobs wait if several machines share the home, such as "
                         "redis://HOST:6379 (default: $ATELIER_QUEUE, else a file in the home)")


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is not an address; use an IP address such as 127.0.0.1, or a network such as "
            "10.0.0.0/24") from None


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if not re.fullmatch(r"(/[\w.~-]+)*", path, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path such as /atelier; use /, letters, digits, - and _")
    return path


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 1 to 65535, or 0 for the first free one")
    return int(text)
