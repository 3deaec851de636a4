"""A server with a password: what it keeps closed, what guessing costs, and how sessions and keys end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from robustness import percentile, record
from serving import served
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from atelier.app.store.api_keys import delete_key, is_key, list_keys, make_key
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.text import server as server_words
from atelier.app.web.sign_in import FREE_TRIES, LONGEST_WAIT, SESSION_SECONDS, Password, Sessions, SignIn, Tries

PASSWORD = "correct horse battery staple"
PROXY = "127.0.0.1"   # the tests themselves, in the place of a reverse proxy
RIGHT = {"username": "atelier", "password": PASSWORD}
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return open_home(tmp_path_factory.mktemp("closed") / "home")


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """A server behind a proxy: every address that X-Forwarded-For names is another sender to it."""
    with served(home, PROXY, ATELIER_PASSWORD=PASSWORD) as running:
        yield running


@pytest.fixture
def web(server: tuple[httpx.Client, psutil.Process]) -> Iterator[httpx.Client]:
    """Somebody who has not signed in."""
    with httpx.Client(base_url=server[0].base_url, timeout=60) as client:
        yield client


def sender(number: int) -> dict[str, str]:
    return {"x-forwarded-for": f"198.51.100.{number}"}


def sign_in(web: httpx.Client, number: int = 1) -> httpx.Response:
    return web.post("/login", data=RIGHT, headers=sender(number))


CLOSED = (
    "/", "/studio", "/config", "/config/", "/theme.css", "/static/img/logo.svg", "/assets/index.js", "/svelte/a.js",
    "/manifest.json", "/robots.txt", "/favicon.ico", "/pwa_icon", "/user", "/logout", "/docs", "/openapi.json",
    "/gradio_api/app_id", "/gradio_api/heartbeat/abc", "/gradio_api/token", "/gradio_api/user", "/gradio_api/info",
    "/gradio_api/startup-events", "/gradio_api/theme.css", "/gradio_api/login_check", "/gradio_api/queue/status",
    "/gradio_api/mcp", "/gradio_api/mcp/", "/gradio_api/mcp/schema", "/gradio_api/mcp/sse",
    "/gradio_api/mcp/messages/", "/gradio_api/file=/etc/hostname", "/own/x", "/health/", "//health",
    "/health/../config", "/HEALTH", "/nowhere",
)   # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_only_the_health_route_answers_without_signing_in(web: httpx.Client, path: str) -> None:
    assert web.get(path).status_code == 401
    for method in ("POST", "PUT", "OPTIONS", "HEAD"):
        assert path == "/logout" or web.request(method, path).status_code == 401


def test_the_health_route_says_nothing_but_ok(web: httpx.Client) -> None:
    assert web.get("/health").json() == {"ok": True}


@pytest.mark.parametrize("path", ["upload", "queue/join", "run/predict", "cancel", "reset", "component_server"])
def test_nothing_is_carried_out_without_signing_in(web: httpx.Client, path: str) -> None:
    sent: dict[str, Any] = {"files": {"files": ("a.png", b"x")}} if path == "upload" else {"json": {}}
    assert web.post(f"/gradio_api/{path}", **sent).status_code == 401


def test_a_browser_is_asked_for_the_password_and_told_nothing_else(web: httpx.Client, home: Home) -> None:
    answer = web.get("/library?adapter=<b>fox", headers=HTML)
    assert answer.status_code == 401 and server_words.SIGN_IN_TITLE in answer.text
    assert 'value="/library?adapter=&lt;b&gt;fox"' in answer.text or "%3Cb%3Efox" in answer.text
    assert str(home.path) not in answer.text and "gradio" not in answer.text and "src=" not in answer.text
    assert answer.headers["content-security-policy"]


def test_signing_in_opens_the_pages_and_signing_out_closes_them(web: httpx.Client) -> None:
    answer = sign_in(web)
    assert answer.status_code == 200 and answer.json() == {"success": True}
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and f"max-age={SESSION_SECONDS}" in cookie
    assert "secure" not in cookie
    assert [web.get(path).status_code for path in ("/", "/config", "/theme.css", "/gradio_api/app_id")] == [200] * 4
    token = answer.headers["set-cookie"].partition(";")[0]
    assert web.post("/logout").status_code == 200
    assert web.get("/config").status_code == 401
    assert web.get("/config", headers={"cookie": token}).status_code == 401, "the token itself has ended"


def test_a_browser_comes_to_the_page_it_asked_for(web: httpx.Client) -> None:
    pages = {"/studio?adapter=fox": "/studio?adapter=fox", "//evil.example": "/", "https://evil.example": "/",
             "/\\evil.example": "/", "": "/", "/a\r\nSet-Cookie: x=y": "/"}   # fmt: skip
    for page, opened in pages.items():
        answer = web.post("/login", data={**RIGHT, "next": page}, headers={**HTML, **sender(2)})
        assert (answer.status_code, answer.headers["location"]) == (303, opened)
    refused = web.post("/login", data={"password": "wrong", "next": '/"><script>'}, headers={**HTML, **sender(2)})
    assert refused.status_code == 400 and server_words.WRONG_PASSWORD in refused.text and "<script>" not in refused.text


@pytest.mark.parametrize("given", [
    {"username": "atelier", "password": "wrong"}, {"username": "root", "password": PASSWORD}, {"password": PASSWORD},
    {"username": "atelier"}, {"username": "atelier", "password": ""},
    {"username": "atelier", "password": PASSWORD + " "},
    {"username": "atelier", "password": "\udc80".encode("utf-8", "surrogatepass")}, {},
])   # fmt: skip
def test_a_wrong_password_opens_nothing(web: httpx.Client, given: dict[str, str]) -> None:
    answer = web.post("/login", data=given, headers=sender(100 + len(str(given))))
    assert answer.status_code == 400 and "set-cookie" not in answer.headers
    assert web.get("/config").status_code == 401


def test_guessing_locks_the_guesser_and_nobody_else(web: httpx.Client) -> None:
    async def guess(client: httpx.AsyncClient) -> int:
        wrong = {**RIGHT, "password": "wrong"}
        return (await client.post("/login", data=wrong, headers=sender(50))).status_code

    async def guesses(count: int) -> list[int]:
        async with httpx.AsyncClient(base_url=web.base_url, timeout=60) as client:
            return await asyncio.gather(*(guess(client) for _ in range(count)))

    codes = asyncio.run(guesses(40))
    # The wait after the last free try is a second, and may be over before all have come.
    assert set(codes) == {400, 429} and FREE_TRIES <= codes.count(400) <= FREE_TRIES + 4
    locked = sign_in(web, 50)
    assert locked.status_code in (200, 429) if codes.count(400) == FREE_TRIES else locked.status_code == 429
    assert sign_in(web, 51).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("senders", [1, 80])
def test_how_long_others_wait_while_passwords_are_guessed(web: httpx.Client, senders: int) -> None:
    """Measures only: wrong passwords 80 at once, from one address or from 80, and the health route meanwhile."""
    async def guess(client: httpx.AsyncClient, number: int) -> int:
        wrong = {**RIGHT, "password": "wrong"}
        sent_by = {"x-forwarded-for": f"203.0.113.{number % senders}"}
        return (await client.post("/login", data=wrong, headers=sent_by)).status_code

    async def measure() -> tuple[list[int], list[float], float]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=web.base_url, timeout=120, limits=limits) as client:
            start, waits = time.perf_counter(), []
            guesses = asyncio.gather(*(guess(client, number) for number in range(80)))
            while not guesses.done() or len(waits) < 20:
                before = time.perf_counter()
                assert (await client.get("/health")).status_code == 200
                waits.append(time.perf_counter() - before)
                await asyncio.sleep(0.01)
            return await guesses, waits, time.perf_counter() - start

    codes, waits, seconds = asyncio.run(measure())
    record(f"80 wrong passwords at once, from {senders}", [{
        "compared": codes.count(400), "told to wait": codes.count(429), "seconds": f"{seconds:.1f}",
        "/health p50 (ms)": percentile(waits, 50), "p95 (ms)": percentile(waits, 95), "p99 (ms)": percentile(waits, 99),
    }])   # fmt: skip
    assert set(codes) <= {400, 429}


def test_a_password_is_compared_beside_the_event_loop(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is being compared, which takes as long as it takes, another request is answered."""
    begun, answered = threading.Event(), threading.Event()

    def compare(_self: Password, _given: str) -> bool:
        begun.set()
        return answered.wait(20)   # on the loop nobody could say so, and it would end with False

    monkeypatch.setattr(Password, "is_right", compare)
    transport = httpx.ASGITransport(SignIn(inside, home, Password(PASSWORD), Sessions(), Tries()))

    async def both() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            signing_in = asyncio.create_task(client.post("/login", data=RIGHT))
            await asyncio.to_thread(begun.wait, 20)
            assert (await client.get("/health")).text == "inside"
            answered.set()
            return (await signing_in).status_code

    assert asyncio.run(both()) == 200


def test_the_password_is_not_in_the_environment_that_children_get(tmp_path: Path) -> None:
    code = ("import os, subprocess, sys; from pathlib import Path; import atelier.app.web.server as server\n"
            "server.bind = lambda *_: print(subprocess.run(['env'], capture_output=True, text=True).stdout) or exit()\n"
            "server.serve(server.Home(Path(sys.argv[1])))")   # fmt: skip
    command = [sys.executable, "-c", code, str(tmp_path / "home")]
    out = subprocess.run(command, capture_output=True, text=True, check=True,
                         env={**os.environ, "ATELIER_PASSWORD": PASSWORD}).stdout   # fmt: skip
    assert "PATH=" in out and PASSWORD not in out


def test_a_named_proxy_says_who_asks_and_how(web: httpx.Client) -> None:
    answer = web.post("/login", data=RIGHT, headers={**sender(3), "x-forwarded-proto": "https"})
    assert "secure" in answer.headers["set-cookie"].lower()
    asked = {"x-forwarded-host": "studio.example", "x-forwarded-proto": "https", **HTML}
    token = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
    assert "https://studio.example" in web.get("/", headers={**asked, **token}).text
    assert web.get("/", headers={**asked, **token, "x-forwarded-host": "evil.example"}).status_code == 400


@pytest.fixture
def tries() -> tuple[Tries, list[float]]:
    now = [0.0]
    return Tries(lambda: now[0]), now


def test_each_wrong_password_beyond_the_first_ones_waits_twice_as_long(tries: tuple[Tries, list[float]]) -> None:
    count, now = tries
    assert [count.begin("a") for _ in range(FREE_TRIES)] == [0] * FREE_TRIES
    waits = []
    for _ in range(16):
        waits.append(count.begin("a"))
        assert count.begin("a") == waits[-1], "asking while it waits changes nothing"
        now[0] += waits[-1]
        assert count.begin("a") == 0
    assert waits == [min(2.0**i, LONGEST_WAIT) for i in range(16)]
    assert count.begin("b") == 0
    count.right("a")
    assert count.begin("a") == 0


def test_wrong_passwords_are_forgotten_after_an_hour(tries: tuple[Tries, list[float]]) -> None:
    count, now = tries
    for _ in range(FREE_TRIES):
        count.begin("a")
    assert count.begin("a") > 0
    now[0] += 3601
    assert [count.begin("a") for _ in range(FREE_TRIES)] == [0] * FREE_TRIES


def test_an_ipv6_network_is_one_guesser(tries: tuple[Tries, list[float]]) -> None:
    count, _ = tries
    for i in range(FREE_TRIES):
        count.begin(f"2001:db8::{i}")
    assert count.begin("2001:db8::ffff") > 0 and count.begin("2001:db8:0:1::1") == 0


def test_guessing_from_everywhere_takes_no_memory(tries: tuple[Tries, list[float]]) -> None:
    count, _ = tries
    for i in range(10_000):
        count.begin(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(count._wrong) == 4096


def test_a_session_ends_by_itself() -> None:
    now = [0.0]
    sessions = Sessions(10, lambda: now[0])
    first, second = sessions.start(), sessions.start()
    assert sessions.knows(first) and sessions.knows(second) and not sessions.knows("") and first != second
    sessions.end(first)
    assert not sessions.knows(first) and sessions.knows(second)
    now[0] = 10.0
    assert not sessions.knows(second)
    sessions.start()
    assert len(sessions._ends) == 1, "ended sessions are forgotten"


def test_the_servers_own_session_ends_with_it_alone() -> None:
    now = [0.0]
    sessions = Sessions(seconds=10.0, clock=lambda: now[0])
    own, other = sessions.start(endless=True), sessions.start()
    now[0] = 1e9
    sessions.start()   # forgets those that have ended
    assert (sessions.knows(own), sessions.knows(other)) == (True, False)


def test_the_password_is_kept_as_a_salted_hash() -> None:
    one, other = Password("secret"), Password("secret")
    assert one.is_right("secret") and not one.is_right("Secret") and not one.is_right("")
    assert one._hash != other._hash and "secret" not in str(vars(one))


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture
def guarded_app(home: Home) -> TestClient:
    return TestClient(SignIn(inside, home, Password(PASSWORD), Sessions(), Tries()))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_program_signs_in_with_a_key_until_it_is_deleted(guarded_app: TestClient, home: Home) -> None:
    key = make_key(home, "render farm")
    assert key not in (home.state / "keys.json").read_text() and (home.state / "keys.json").stat().st_mode & 0o077 == 0
    assert guarded_app.get("/config", headers=bearer(key)).status_code == 200
    for wrong in ("", key[:-1], key + "x", list_keys(home)[0].sha256, "é"):
        assert guarded_app.get("/config", headers=[(b"authorization", f"Bearer {wrong}".encode())]).status_code == 401
    assert guarded_app.get("/config", headers={"authorization": f"Basic {key}"}).status_code == 401
    delete_key(home, "render farm")
    assert guarded_app.get("/config", headers=bearer(key)).status_code == 401


def test_a_key_has_one_name_and_a_damaged_list_opens_nothing(home: Home) -> None:
    key = make_key(home, "one")
    with pytest.raises(HomeError, match="There is already a key named 'One'"):
        make_key(home, "One")
    with pytest.raises(HomeError, match="no key named 'two'"):
        delete_key(home, "two")
    with pytest.raises(HomeError, match="empty"):
        make_key(home, " ")
    assert is_key(home, key) and not is_key(home, "one")
    for damage in ("{", "[1]", '[{"name": "x"}]', "[]"):
        (home.state / "keys.json").write_text(damage)
        assert not is_key(home, key) and list_keys(home) == []


def test_a_damaged_cookie_is_no_session(guarded_app: TestClient) -> None:
    for cookie in ("x", "=;=", "a" * 5000, 'atelier-0="', "\x00"):
        assert guarded_app.get("/config", headers={"cookie": cookie}).status_code == 401


def test_a_long_form_is_not_read(guarded_app: TestClient) -> None:
    assert guarded_app.post("/login", data={**RIGHT, "password": "x" * 5000}).status_code == 413


@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "punycode", "utf-7", "zlib"])
def test_a_form_does_not_choose_how_it_is_decoded(guarded_app: TestClient, charset: str) -> None:
    body = "".join(f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
                   for name, text in (("username", "\\ud800"), ("password", RIGHT["password"]))) + "--x--\r\n"
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    assert guarded_app.post("/login", content=body, headers={"content-type": kind}).status_code == 400


@pytest.mark.parametrize("body", [b"\xff=\xfe", b"username=%ED%A0%80&password=%", b"&" * 4000, b"a=1&" * 1000, b"="])
def test_a_form_that_makes_no_sense_is_a_wrong_password(guarded_app: TestClient, body: bytes) -> None:
    kind = "application/x-www-form-urlencoded"
    assert guarded_app.post("/login", content=body, headers={"content-type": kind}).status_code == 400
