"""What one address may ask for and what uploads may take, with limits small enough to reach."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import anyio
import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from atelier.app.web.quotas import UPLOAD, Limits, Quotas, Requests, file_sizes


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def limited(folder: Path, **limits: float) -> TestClient:
    quotas = Quotas(**{"spare_bytes": 0, **limits})   # type: ignore[arg-type]
    return TestClient(Limits(inside, quotas, folder))


def test_one_address_has_so_many_requests_and_another_its_own() -> None:
    now = [0.0]
    requests = Requests(Quotas(requests_per_second=2, requests_at_once=3), lambda: now[0])
    assert [requests.take("a") for _ in range(4)] == [True, True, True, False]
    assert requests.take("b")
    assert [requests.take(f"2001:db8::{i}") for i in range(4)] == [True, True, True, False], "one IPv6 network"
    now[0] += 1
    assert [requests.take("a") for _ in range(3)] == [True, True, False]
    now[0] += 100
    assert [requests.take("a") for _ in range(4)] == [True, True, True, False]
    for i in range(10_000):
        requests.take(str(i))
    assert len(requests._left) == 4096


def test_too_many_requests_are_told_when_to_come_again(tmp_path: Path) -> None:
    web = limited(tmp_path, requests_per_second=0, requests_at_once=2)
    answers = [web.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429] and answers[-1].headers["retry-after"] == "1"


def test_a_body_that_is_no_upload_stays_small(tmp_path: Path) -> None:
    web = limited(tmp_path, body_bytes=10)
    assert [web.post("/x", content=b"a" * size).status_code for size in (10, 11)] == [200, 413]
    assert web.post(UPLOAD, content=b"a" * 11).status_code == 200


def test_a_body_of_unknown_length_is_refused(tmp_path: Path) -> None:
    for path in ("/x", UPLOAD):
        assert limited(tmp_path).post(path, content=iter([b"a", b"b"])).status_code == 411


def test_uploads_together_stay_below_the_quota(tmp_path: Path) -> None:
    web = limited(tmp_path, upload_bytes=100)
    assert web.post(UPLOAD, content=b"a" * 60).status_code == 200
    (tmp_path / "a").write_bytes(b"a" * 60)
    os.link(tmp_path / "a", tmp_path / "b")   # a second name takes no room
    answer = web.post(UPLOAD, content=b"a" * 50)
    assert answer.status_code == 413 and "60 B of 100 B" in answer.text
    assert web.post(f"{UPLOAD}/", content=b"a" * 50).status_code == 413
    assert web.post(UPLOAD, content=b"a" * 40).status_code == 200
    assert sum(file_sizes(tmp_path)) == 60


def test_so_many_uploads_may_be_there(tmp_path: Path) -> None:
    """Empty ones take no bytes, and yet each takes of the disk, and of the time of everybody who uploads."""
    web = limited(tmp_path, upload_files=3)
    for name in ("a", "b"):
        (tmp_path / name).touch()
    assert web.post(UPLOAD, content=b"a").status_code == 200
    (tmp_path / "c").touch()
    answer = web.post(UPLOAD, content=b"a")
    assert answer.status_code == 413 and "There are 3 recent uploads" in answer.text


def test_uploads_under_way_count(tmp_path: Path) -> None:
    codes = []

    async def again(scope: Scope, receive: Receive, send: Send) -> None:
        if not codes:   # a second upload comes while the first is being taken
            codes.append(0)
            codes[0] = web.post(UPLOAD, content=b"a" * 60).status_code
        await inside(scope, receive, send)

    web = TestClient(Limits(again, Quotas(upload_bytes=100, spare_bytes=0), tmp_path))
    assert web.post(UPLOAD, content=b"a" * 60).status_code == 200
    assert codes == [413]
    assert web.post(UPLOAD, content=b"a" * 60).status_code == 200, "what was under way is over"


def sender_of(*pieces: bytes) -> Receive:
    """One that sends these and then nothing, for ever."""
    left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive() -> Message:
        if left:
            return left.pop(0)
        await anyio.sleep_forever()
        raise AssertionError

    return receive


def read_body(quotas: Quotas, folder: Path, length: int, *pieces: bytes) -> list[Message]:
    """What an application receives until the sender is gone or the body is whole."""
    messages: list[Message] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while sum(len(message.get("body", b"")) for message in messages) < length:
            messages.append(await receive())
            if messages[-1]["type"] == "http.disconnect":
                break

    scope = {"type": "http", "method": "POST", "path": "/x", "client": ("a", 1),
             "headers": [(b"content-length", str(length).encode())]}   # fmt: skip

    async def main() -> None:
        with anyio.fail_after(60):
            await Limits(application, quotas, folder)(scope, sender_of(*pieces), no_send)

    anyio.run(main)
    return messages


async def no_send(message: Message) -> None:
    raise AssertionError(message)


def test_a_body_that_comes_too_slowly_is_given_up(tmp_path: Path) -> None:
    slow = Quotas(spare_bytes=0, body_seconds=0.05)
    assert [message["type"] for message in read_body(slow, tmp_path, 9, b"1234")] == ["http.request", "http.disconnect"]
    assert [message["body"] for message in read_body(slow, tmp_path, 9, b"1234", b"56789")] == [b"1234", b"56789"]


def test_a_large_body_has_more_time_than_a_small_one() -> None:
    quotas = Quotas(body_seconds=60, bytes_per_second=1000)
    assert [quotas.seconds_for(length) for length in (0, 60_000, 6_000_000)] == [60, 120, 6060]


def test_an_upload_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    web = limited(tmp_path, spare_bytes=50)
    assert [web.post(UPLOAD, content=b"a" * size).status_code for size in (50, 51)] == [200, 507]
