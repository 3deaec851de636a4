"""What stands between the web app and the rest of the network.

Other web sites can make a browser send requests to a server on the same machine. The guard lets a request
through only when it names one of our own hosts and, if it writes, comes from one of our own pages; it closes
the routes by which Gradio would fetch other people's addresses, and tells the browser to load nothing from
anywhere else.
"""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier.app.store.home import Home
from atelier.app.text import server as words
from atelier.app.web.home_guard import HomePresent
from atelier.app.web.listener import is_loopback
from atelier.app.web.pictures import Pictures
from atelier.app.web.quotas import UPLOAD, Limits, Quotas, is_within
from atelier.app.web.sign_in import Password, Sessions, SignIn, Tries

Network = IPv4Network | IPv6Network
LOOPBACK = ("127.0.0.1", "localhost")
POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio compiles the templates of gr.HTML in the browser, which needs 'unsafe-eval'.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # No other site may show our pictures, or hold on to a window of ours.
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_FORMS = (UPLOAD, "/login")   # the only writes that are no JSON
# What Gradio offers and Atelier does not use. A deep link writes all that stands on a page into a file.
_CLOSED = ("/gradio_api/deep_link", "/gradio_api/vibe", "/gradio_api/dev/", "/gradio_api/process_recording",
           "/gradio_api/undo-vibe", "/gradio_api/openapi.json")   # fmt: skip


class Guard:
    """Refuse writes from other sites and requests that would make us fetch a foreign address.

    Plain ASGI on purpose: Starlette's BaseHTTPMiddleware would hold back the event streams.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":   # no page of ours opens one
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        has_answered = False

        async def send_with_headers(message: Message) -> None:
            """Send a message, the start of a response with our headers."""
            nonlocal has_answered
            if message["type"] == "http.response.start":
                has_answered = True
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        refusal = refused(scope)
        app = JSONResponse({"detail": refusal}, 403) if refusal else self.app
        try:
            await app(scope, receive, send_with_headers)
        except Exception as error:
            _log(scope, error)
            if not has_answered:   # Gradio's app has, with status 500
                await JSONResponse({"detail": words.FAILED}, 500)(scope, receive, send_with_headers)


def _log(scope: Scope, error: Exception) -> None:
    """Log an error in one line: many requests that make no sense end in one, and whoever sends those must not fill the
    log with tracebacks. They come with the level DEBUG.
    """
    logger = logging.getLogger(__name__)
    last = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s %.200r: %.200r in %s:%s", scope["method"], scope["path"], error, last.filename, last.lineno,
                 exc_info=error if logger.isEnabledFor(logging.DEBUG) else None)   # fmt: skip


def refused(scope: Scope) -> str:
    """Say why a request is turned away; empty text lets it pass."""
    headers, path = Headers(scope=scope), scope["path"].lower()
    if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        if not _same_site(headers):
            return words.FROM_ANOTHER_SITE
        if _is_simple(headers) and scope["path"].rstrip("/") not in _FORMS:
            return words.NOT_JSON
    if "/file=http" in path or "/proxy=" in path:
        return words.NO_FOREIGN_ADDRESSES
    return words.NOT_OFFERED if path.startswith(_CLOSED) else ""


def _same_site(headers: Headers) -> bool:
    """Whether a page of ours sent this. Programs that are no browser send none of these headers and may write."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return False
    # The host itself was checked before, so "same as the host" cannot be forged by a foreign page,
    # and it holds behind a forwarded port too, where our own port number is not the one the browser sees.
    sources = [headers[name] for name in ("origin", "referer") if name in headers]
    return all(_host_of(source) == headers.get("host") for source in sources)


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).netloc
    except ValueError:   # such as http://[
        return ""


def _is_simple(headers: Headers) -> bool:
    """Whether a form of any web site could have sent this without the browser asking us first."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return has_body and kind != "application/json"


class Forwarded:
    """Take the sender, host and scheme from what a proxy says, if it is one that was named; else drop what is said.

    A header that anybody can write must decide neither who is throttled nor what a page believes to be its address.
    """

    def __init__(self, app: ASGIApp, proxies: Sequence[Network]) -> None:
        self.app, self.proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            said = Headers(scope=scope)
            scope = {**scope, "headers": [pair for pair in scope["headers"] if not _is_forwarding(pair[0])]}
            if scope["client"] and self._is_proxy(scope["client"][0]):
                self._believe(scope, said)
        await self.app(scope, receive, send)

    def _is_proxy(self, address: str) -> bool:
        return is_within(address, self.proxies)

    def _believe(self, scope: Scope, said: Headers) -> None:
        # The last address that is no proxy's of ours: those before it are the sender's own words.
        hops = [hop.strip() for line in said.getlist("x-forwarded-for") for hop in line.split(",")]
        sender = next((hop for hop in reversed(hops) if not self._is_proxy(hop)), "")
        if sender:
            scope["client"] = (sender, 0)
        if said.get("x-forwarded-proto") in ("http", "https"):
            scope["scheme"] = said["x-forwarded-proto"]
            scope["headers"].append((b"x-forwarded-proto", said["x-forwarded-proto"].encode()))
        if host := said.get("x-forwarded-host", ""):
            others = [pair for pair in scope["headers"] if pair[0] != b"host"]
            scope["headers"] = [*others, (b"host", host.encode("latin-1"))]


def _is_forwarding(name: bytes) -> bool:
    return name.lower().startswith(b"x-forwarded-") or name.lower() in (b"forwarded", b"x-real-ip")


class WithoutPrefix:
    """Take the root path away from the front of a request's path, for proxies that leave it there.

    Gradio would take it away itself, behind the guards, which would have seen another path than it serves.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        while self.root_path and (path == self.root_path or path.startswith(f"{self.root_path}/")):
            path = path.removeprefix(self.root_path) or "/"
        await self.app({**scope, "path": path} if "path" in scope else scope, receive, send)


def allowed_hosts(host: str) -> list[str]:
    """Names under which a server bound to ``host`` may be asked for."""
    names = {*LOOPBACK, host}
    if not is_loopback(host):
        names |= {socket.gethostname(), f"{socket.gethostname()}.local"}
    if host in ("0.0.0.0", "::"):
        names |= {a.address for addresses in psutil.net_if_addrs().values() for a in addresses
                  if a.family == socket.AF_INET}
    return sorted(names - {"0.0.0.0", "::"})


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may reach a server, and how."""

    host: str = "127.0.0.1"              # the address it listens on
    password: str = ""                   # empty: anybody who reaches it
    proxies: Sequence[Network] = ()      # whose word on senders is believed
    names: Sequence[str] = ()            # under which it is asked for through them
    root_path: str = ""                  # what they have before every path, such as /atelier
    quotas: Quotas = field(default_factory=Quotas)
    sessions: Sessions = field(default_factory=Sessions)


def guarded(home: Home, access: Access, uploads: Path, served: Sequence[Path]) -> FastAPI:
    """Make the parent application: the guards, and a health route that says nothing but "ok".

    Args:
        home: whose pictures are shown.
        access: who may reach it.
        uploads: the folder that uploads go to.
        served: files and folders that Gradio serves, the uploads among them.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # The last one added is the first that a request meets.
    app.add_middleware(Pictures, home=home, passed=served)
    app.add_middleware(HomePresent, home=home)
    if access.password:
        app.add_middleware(SignIn, home=home, password=Password(access.password), sessions=access.sessions,
                           tries=Tries())   # fmt: skip
    app.add_middleware(Limits, quotas=access.quotas, uploads=uploads)
    app.add_middleware(Guard)
    names = [*allowed_hosts(access.host), *access.names]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    app.add_middleware(Forwarded, proxies=access.proxies)
    app.add_middleware(WithoutPrefix, root_path=access.root_path)

    @app.get("/health")
    def health() -> dict[str, bool]:
        """Whether the server answers: the one thing said without a password."""
        return {"ok": True}   # the one thing said without a password

    return app
