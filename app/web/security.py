"""What stands between the web app and the rest of the network.

Other web sites can make a browser send requests to a server on the same machine. The guard lets a request
through only when it names one of our own hosts and, if it writes, comes from one of our own pages; it closes
the routes by which Gradio would fetch other people's addresses, and tells the browser to load nothing from
anywhere else.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

import psutil
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
)


class Guard:
    """Refuse writes from other sites and requests that would make us fetch a foreign address.

    Plain ASGI on purpose: Starlette's BaseHTTPMiddleware would hold back the event streams.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = refused(scope)
        if refusal:
            return await JSONResponse({"detail": refusal}, 403)(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        return await self.app(scope, receive, send_with_headers)


def refused(scope: Scope) -> str:
    """Say why a request is turned away; empty text lets it pass."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not _same_site(headers):
        return "This request came from another web site, so it was not carried out."
    path = scope["path"].lower()
    if "/file=http" in path or "/proxy=" in path:
        return "Atelier fetches no foreign addresses."
    return ""


def _same_site(headers: dict[str, str]) -> bool:
    """Whether a page of ours sent this. Programs that are no browser send neither header and may write."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return False
    origin = headers.get("origin")
    # The host itself was checked before, so "same as the host" cannot be forged by a foreign page,
    # and it holds behind a forwarded port too, where our own port number is not the one the browser sees.
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> list[str]:
    """Names under which a server bound to ``host`` may be asked for."""
    names = {*LOOPBACK, host}
    if not is_loopback(host):
        names |= {socket.gethostname(), f"{socket.gethostname()}.local"}
    if host in ("0.0.0.0", "::"):
        names |= {a.address for addresses in psutil.net_if_addrs().values() for a in addresses
                  if a.family == socket.AF_INET}
    return sorted(names - {"0.0.0.0", "::"})


def guarded(host: str) -> FastAPI:
    """Make the parent application: the guards, and a health route that says nothing but "ok"."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host), www_redirect=False)

    @app.get("/health")
    def health() -> dict[str, bool]:
        # Gradio's password does not cover routes of the parent, so nothing else may be said here.
        return {"ok": True}

    return app
