"""Who may use a server that has a password: the password, its throttle, sessions that end, and keys of programs.

Gradio's own sign-in covers only some of its routes, runs the check on the event loop and never ends a session, so it
stays off. Here a request without a session or a key gets the sign-in page or a refusal, whatever it asks for; the
one exception is ``/health``, which says nothing but "ok".
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from atelier.app.store.api_keys import is_key
from atelier.app.store.home import Home
from atelier.app.text import server as words
from atelier.app.web.components.urls import root_path
from atelier.app.web.quotas import network_of

USER = "atelier"
SESSION_SECONDS = 7 * 24 * 3600
FREE_TRIES = 5            # wrong passwords from one address before the next has to wait
LONGEST_WAIT = 900.0      # seconds
_FORGOTTEN = 3600.0       # seconds after which a wrong password no longer counts
_MOST_ADDRESSES = 4096    # counted at once; the oldest make room
_MOST_WAITING = 32        # passwords that wait to be hashed, from all addresses together
_LONGEST_FORM = 4096      # bytes
_MOST_FIELDS = 10
# What OWASP asks of scrypt with 32 MB: a few tenths of a second of one core.
_SCRYPT = partial(hashlib.scrypt, n=2**15, r=8, p=3, maxmem=2**26, dklen=32)


class Password:
    """A password, kept as its scrypt hash."""

    def __init__(self, text: str) -> None:
        self._salt = secrets.token_bytes(16)
        self._hash = _SCRYPT(text.encode(errors="replace"), salt=self._salt)

    def is_right(self, given: str) -> bool:
        """Compare; takes a few tenths of a second of a core, so never call it on the event loop."""
        return hmac.compare_digest(_SCRYPT(given.encode(errors="replace"), salt=self._salt), self._hash)


class Tries:
    """Wrong passwords by address: after a few, each next one waits twice as long as the one before.

    A try counts as wrong from its start, so that many at once gain nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()   # address → how often, when last

    def begin(self, address: str) -> float:
        """Count a try; returns the seconds to wait instead, and then nothing was counted. 0: go ahead."""
        key, now = network_of(address), self._clock()
        count, last = self._wrong.get(key, (0, now))
        if now - last > _FORGOTTEN:
            count = 0
        wait = min(LONGEST_WAIT, 2.0 ** min(count - FREE_TRIES, 30)) - (now - last) if count >= FREE_TRIES else 0.0
        if wait > 0:
            return wait
        self._wrong[key] = (count + 1, now)
        self._wrong.move_to_end(key)
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        return 0.0

    def right(self, address: str) -> None:
        """The password was right: forget the wrong ones."""
        self._wrong.pop(network_of(address), None)


class Sessions:
    """Who has signed in: hashes of the cookies' tokens, and when each ends."""

    def __init__(self, seconds: float = SESSION_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._ends: dict[bytes, float] = {}

    def start(self, *, endless: bool = False) -> str:
        """Begin a session; returns its token. An endless one is for the server itself, and ends with it."""
        self._ends = {token: end for token, end in self._ends.items() if end > self._clock()}
        token = secrets.token_urlsafe(32)
        self._ends[_digest(token)] = math.inf if endless else self._clock() + self.seconds
        return token

    def knows(self, token: str) -> bool:
        """Whether the session of a token is under way."""
        return self._ends.get(_digest(token), -math.inf) > self._clock()

    def end(self, token: str) -> None:
        """Forget a session's token; an unknown one changes nothing."""
        self._ends.pop(_digest(token), None)


def cookie_name(home: Home) -> str:
    """Of the sessions of a home: browsers send cookies to every port of a host, so that two must not share one."""
    return "atelier-" + hashlib.sha256(str(home.path).encode()).hexdigest()[:12]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


class SignIn:
    """Let a request through that has a session's cookie or a program's key; answer all others itself."""

    def __init__(self, app: ASGIApp, home: Home, password: Password, sessions: Sessions, tries: Tries) -> None:
        self.app, self.home, self.password, self.sessions, self.tries = app, home, password, sessions, tries
        self.cookie = cookie_name(home)
        self.hashing = anyio.CapacityLimiter(1)   # one core at most, whoever guesses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        match scope["method"], scope["path"]:
            case "POST", "/login":
                answer = await self._sign_in(request)
            case "POST", "/logout":
                answer = self._sign_out(request)
            case ("GET" | "HEAD"), "/login":
                answer = HTMLResponse(_page("/"))
            case _:
                if self._is_known(request.headers):
                    return await self.app(scope, receive, send)
                answer = _ask(request)
        await answer(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return is_key(self.home, key.strip())
        return self.sessions.knows(self._token(headers))

    def _token(self, headers: Headers) -> str:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return ""
        return cookies[self.cookie].value if self.cookie in cookies else ""

    async def _sign_in(self, request: Request) -> Response:
        if int(request.headers.get("content-length", 0)) > _LONGEST_FORM:
            return JSONResponse({"detail": words.WRONG_PASSWORD}, 413)
        form = _fields(await request.body())
        user, given, page = (form.get(name, "") for name in ("username", "password", "next"))
        address = request.client.host if request.client else ""
        wait = self.tries.begin(address)
        if not wait and self.hashing.statistics().tasks_waiting >= _MOST_WAITING:
            wait = 1.0
        if wait:
            return _refuse(request, page, 429, words.wait_to_sign_in(wait), {"retry-after": str(math.ceil(wait))})
        right = await anyio.to_thread.run_sync(self.password.is_right, given, limiter=self.hashing)
        if not (right and hmac.compare_digest(user.strip().encode(), USER.encode())):
            return _refuse(request, page, 400, words.WRONG_PASSWORD)
        self.tries.right(address)
        page = root_path() + _local(page)
        answer = RedirectResponse(page, 303) if _is_browser(request) else JSONResponse({"success": True})
        answer.set_cookie(self.cookie, self.sessions.start(), max_age=int(self.sessions.seconds), httponly=True,
                          samesite="lax", secure=request.url.scheme == "https")   # fmt: skip
        return answer

    def _sign_out(self, request: Request) -> Response:
        self.sessions.end(self._token(request.headers))
        answer = JSONResponse({"success": True})
        answer.delete_cookie(self.cookie)
        return answer


def _fields(body: bytes) -> dict[str, str]:
    """The fields of a form as browsers encode it. The other encoding lets the sender choose how its text is decoded."""
    try:
        return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        return {}


def _ask(request: Request) -> Response:
    """Ask a browser that opens a page for the password; refuse everything else."""
    if request.method in ("GET", "HEAD") and _is_browser(request):
        page = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return HTMLResponse(_page(page), 401)
    return JSONResponse({"detail": words.SIGN_IN_FIRST}, 401, {"www-authenticate": "Bearer"})


def _refuse(request: Request, page: str, status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    if _is_browser(request):
        return HTMLResponse(_page(_local(page), why), status, headers)
    return JSONResponse({"detail": why}, status, headers)


def _page(page: str, why: str = "") -> str:
    # Imports Gradio, which reads its settings from the environment at that moment.
    from atelier.app.web.components.sign_in_page import sign_in_page

    return sign_in_page(page, why)


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _local(page: str) -> str:
    """Where to go after signing in: a page of ours, whatever the form says."""
    ours = page.startswith("/") and not page.startswith("//") and "\\" not in page and page.isprintable()
    return page if ours else "/"
