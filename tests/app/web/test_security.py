"""The web app's doors, tried by plain HTTP on a server of its own."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from serving import served
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from atelier.app.store.home import Home, open_home
from atelier.app.web.api import ENDPOINTS
from atelier.app.web.listener import ServeError, bind, is_loopback
from atelier.app.web.security import Access, Forwarded, Guard, allowed_hosts, guarded
from atelier.app.web.server import serve


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return open_home(tmp_path_factory.mktemp("guard") / "home")


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    with served(home) as running:
        yield running


@pytest.fixture(scope="module")
def web(server: tuple[httpx.Client, psutil.Process]) -> httpx.Client:
    return server[0]


def own(web: httpx.Client) -> str:
    return str(web.base_url).rstrip("/")


def post(web: httpx.Client, **headers: str) -> int:
    """Status of a JSON post with these headers."""
    answer = web.post("/gradio_api/queue/join", json={}, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return answer.status_code


def read(web: httpx.Client, path: Path | str) -> int:
    return web.get(f"/gradio_api/file={path}").status_code


def test_pages_are_served_with_the_policy(web: httpx.Client) -> None:
    for path in ("/", "/studio", "/library", "/gallery", "/jobs", "/settings"):
        answer = web.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "object-src 'none'" in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_health_says_nothing_but_ok(web: httpx.Client) -> None:
    assert web.get("/health").json() == {"ok": True}


def test_no_page_describes_the_interface(web: httpx.Client) -> None:
    assert [web.get(path).status_code for path in ("/docs", "/openapi.json", "/redoc")] == [404, 404, 404]
    assert web.get("/gradio_api/openapi.json").status_code == 403
    assert web.get("/monitoring/summary").status_code in (403, 404)


def test_the_root_path_in_a_request_is_no_way_around_the_guards(tmp_path: Path) -> None:
    app = guarded(open_home(tmp_path / "home"), Access(root_path="/atelier"), uploads=tmp_path, served=[])

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:   # takes it away by itself, as Gradio's does
        await JSONResponse(scope["path"].removeprefix("/atelier"))(scope, receive, send)

    app.mount("/", inner)
    with TestClient(app, base_url="http://127.0.0.1") as web:
        for prefix in ("", "/atelier", "/atelier/atelier"):
            assert web.get(f"{prefix}/gradio_api/file=/etc/hostname").status_code == 403, "only pictures of the home"
            assert web.get(f"{prefix}/gradio_api/deep_link").status_code == 403
            assert web.get(f"{prefix}/health").json() == {"ok": True}
            assert web.get(f"{prefix}/library").json() == "/library"
        assert web.get("/atelier").json() == "/"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""])
def test_a_foreign_host_name_is_refused(web: httpx.Client, host: str) -> None:
    assert web.get("/", headers={"host": host}).status_code == 400


ORIGINS = ("http://evil.example", "null", "http://[", "", "http://127.0.0.1:9999", "https://127.0.0.1.evil.example")


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_write_from_another_site_is_refused(web: httpx.Client, origin: str) -> None:
    assert post(web, origin=origin) == 403


def test_a_write_that_was_called_up_on_another_site_is_refused(web: httpx.Client) -> None:
    assert post(web, referer="http://evil.example/page") == 403
    assert post(web, referer=f"{own(web)}/studio") not in (400, 403)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_of_any_site_can_send_is_refused(web: httpx.Client, kind: str) -> None:
    """The browser asks nobody before it sends these, and an old one may not say where they come from."""
    body = b'{"data": [], "fn_index": 1, "session_hash": "x"}'
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/component_server", "/logout"):
        assert web.post(path, content=body, headers={"content-type": kind}).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_write_that_the_browser_calls_foreign_is_refused(web: httpx.Client, site: str) -> None:
    assert post(web, sec_fetch_site=site) == 403


def test_an_upload_from_another_site_is_refused(web: httpx.Client) -> None:
    files = {"files": ("a.png", b"x")}
    answer = web.post("/gradio_api/upload", files=files, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert web.post("/gradio_api/upload", files=files, headers={"origin": own(web)}).status_code == 200


def test_a_write_from_our_own_page_or_a_program_passes(web: httpx.Client) -> None:
    assert post(web, origin=own(web), sec_fetch_site="same-origin") not in (400, 403)
    assert post(web) not in (400, 403)


def test_our_page_behind_a_forwarded_port_passes(web: httpx.Client) -> None:
    assert post(web, host="localhost:9000", origin="http://localhost:9000") not in (400, 403)


FORWARDED = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-for": "198.51.100.7",
             "forwarded": "for=198.51.100.7;host=evil.example", "x-forwarded-port": "1", "x-real-ip": "198.51.100.7",
             "x-forwarded-prefix": "/evil"}   # fmt: skip


def test_nobody_is_believed_to_be_a_proxy(web: httpx.Client) -> None:
    plain, forwarded = web.get("/").text, web.get("/", headers=FORWARDED).text
    assert "evil" not in forwarded and own(web) in forwarded and len(plain) == len(forwarded)
    assert post(web, origin="http://evil.example", **{k.replace("-", "_"): v for k, v in FORWARDED.items()}) == 403


@pytest.mark.parametrize(("peer", "client", "scheme", "host"), [
    ("127.0.0.1", "127.0.0.1", "http", "here"), ("10.1.2.3", "198.51.100.9", "https", "studio.example"),
    ("192.168.7.7", "198.51.100.9", "https", "studio.example"), ("192.168.8.7", "192.168.8.7", "http", "here"),
    ("testclient", "testclient", "http", "here"),
])   # fmt: skip
def test_a_named_proxy_alone_says_who_sent_a_request(peer: str, client: str, scheme: str, host: str) -> None:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        said = {name.decode(): value.decode() for name, value in scope["headers"]}
        await JSONResponse([scope["client"][0], scope["scheme"], said["host"], sorted(said)])(scope, receive, send)

    app = Forwarded(tell, [ip_network("10.1.2.3"), ip_network("192.168.7.0/24")])
    web = TestClient(app, base_url="http://here", client=(peer, 1))
    hops = "203.0.113.1, 198.51.100.9, 10.1.2.3"   # the first is what the sender claims of itself
    said = {**FORWARDED, "x-forwarded-for": hops, "x-forwarded-host": "studio.example"}
    *found, names = web.get("/", headers=said).json()
    assert found == [client, scheme, host]
    assert set(names) & set(FORWARDED) <= {"x-forwarded-proto"}


def test_foreign_addresses_are_not_fetched(web: httpx.Client) -> None:
    for path in ("http://example.com/x.png", "HTTPS://example.com/x.png", "http:%2F%2F169.254.169.254/"):
        assert read(web, path) == 403
    assert web.get("/gradio_api/proxy=https://example.com/").status_code == 403


def test_what_gradio_offers_and_nobody_uses_is_closed(web: httpx.Client) -> None:
    for path in ("deep_link?session_hash=x", "vibe-code", "vibe-code/", "dev/reload"):
        assert web.get(f"/gradio_api/{path}").status_code == 403


def test_no_endpoint_is_public_that_nobody_named(web: httpx.Client) -> None:
    named = web.get("/gradio_api/info").json()["named_endpoints"]
    assert set(named) == {f"/{name}" for name in ENDPOINTS}, "an endpoint of docs/api.md, and no other"


def test_an_error_behind_an_answer_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/answered":
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise KeyError("no handler\nof this number")

    web = TestClient(Guard(failing))
    assert web.get("/answered").status_code == 500
    unanswered = web.get("/unanswered")
    assert unanswered.status_code == 500 and "could not be carried out" in unanswered.json()["detail"]
    assert len(caplog.messages) == 2
    for record in caplog.records:
        assert "no handler" in record.message and "\n" not in record.message and record.exc_info is None


def test_web_sockets_are_refused() -> None:
    async def welcoming(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    with pytest.raises(WebSocketDisconnect), TestClient(Guard(welcoming)).websocket_connect("/"):
        pass


def test_gallery_pictures_are_served_and_nothing_else(web: httpx.Client, home: Home) -> None:
    picture = home.gallery / "20250101-000000-000000-abcdef.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert read(web, picture) == 200
    secrets = [home.state / "queue.sqlite", home.state / "draft" / "draft.json", home.trash / "gallery" / "x.png",
               home.state / "worker.log", home.adapters / "fox.safetensors", home.path / "stray.txt"]
    for secret in secrets:
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_bytes(picture.read_bytes())   # so that only the place speaks against it
        assert read(web, secret) in (403, 404), secret
    outside = (f"{home.gallery}/../state/queue.sqlite", f"{home.gallery}/%2e%2e/stray.txt")
    for path in ("/etc/passwd", "../../etc/passwd", *outside):
        assert read(web, path) in (403, 404), path


def test_the_working_folder_holds_nothing(server: tuple[httpx.Client, psutil.Process], home: Home) -> None:
    """Gradio hands out files of the working folder and the system's temporary one when told their names."""
    web, process = server
    assert Path(process.cwd()) == home.state / "empty" and not list(Path(process.cwd()).iterdir())
    [uploaded] = web.post("/gradio_api/upload", files={"files": ("../../a.png", b"x")}).json()
    assert Path(uploaded).is_relative_to(home.state / "web") and Path(uploaded).name == "a.png"
    assert (home.state / "web").stat().st_mode & 0o077 == 0
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        assert read(web, file.name) in (403, 404)


def test_only_pictures_come_from_the_home_whatever_they_are_called(web: httpx.Client, home: Home) -> None:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP")
    webp = home.gallery / "called.png"
    webp.write_bytes(buffer.getvalue())
    answer = web.get(f"/gradio_api/file={webp}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = b"<html><script>alert(1)</script>"
    for name in ("page.html", "page.png", "page.svg", "page.js", "page.webp", "page.jpg", "page", "page.txt"):
        (home.gallery / name).write_bytes(page)
        assert read(web, home.gallery / name) == 403
    run = home.runs / "20250101-000000-000000-fox"
    for folder in ("previews", "checkpoints", "control"):
        (run / folder).mkdir(parents=True)
        (run / folder / "a.png").write_bytes(buffer.getvalue())
    for name in ("log.txt", "recipe.toml", "events.jsonl", "previews/page.html", "a.png"):
        (run / name).write_bytes(buffer.getvalue() if name == "a.png" else page)
        assert read(web, run / name) == 403, name
    served = [path for path in run.rglob("*.png") if read(web, path) == 200]
    assert served == [run / "previews" / "a.png"]


def test_links_out_of_the_gallery_are_not_followed(web: httpx.Client, home: Home, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (home.gallery / "link.png").symlink_to(tmp_path / "secret.png")
    (home.gallery / "folder").symlink_to(tmp_path, target_is_directory=True)
    (home.state / "web" / "link.png").symlink_to(tmp_path / "secret.png")
    for path in ("gallery/link.png", "gallery/folder/secret.png", "state/web/link.png", "gallery", "gallery/no.png"):
        assert read(web, home.path / path) in (403, 404)


def test_other_machines_need_a_password(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATELIER_PASSWORD", raising=False)
    monkeypatch.setattr("atelier.app.web.server.bind", lambda *_: pytest.fail("it listens"))
    with pytest.raises(ServeError, match=r"0\.0\.0\.0.*needs a password.*ATELIER_PASSWORD"):
        serve(home, host="0.0.0.0")
    with pytest.raises(ServeError, match=r"With --proxy.*ATELIER_PASSWORD"):
        serve(home, proxies=[ip_network("127.0.0.1")])


def test_a_port_in_use_is_said_with_the_cure() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"port {port}: .*in use.*--port"):
            bind("127.0.0.1", port)
        with bind("127.0.0.1", 0) as other:
            assert other.getsockname()[1] != port


def test_a_host_of_another_machine_is_said_at_once() -> None:
    with pytest.raises(ServeError, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_the_names_a_server_answers_to() -> None:
    assert allowed_hosts("127.0.0.1") == ["127.0.0.1", "localhost"]
    open_to_all = allowed_hosts("0.0.0.0")
    own = {a.address for group in psutil.net_if_addrs().values() for a in group if a.family == socket.AF_INET}
    assert own <= set(open_to_all) and "0.0.0.0" not in open_to_all and "*" not in open_to_all
    assert [is_loopback(host) for host in ("127.0.0.1", "127.0.0.9", "localhost", "0.0.0.0", "192.168.1.5", "a.b")] == [
        True, True, True, False, False, False]   # fmt: skip
