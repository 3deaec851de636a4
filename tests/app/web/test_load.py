"""Many clients at once, and passwords being guessed: nobody gets an error, and nobody waits for long.

``ATELIER_RECORD=1 pytest -m slow -s tests/app/web/test_load.py`` writes what it measured into docs/robustness.md.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from PIL import Image
from robustness import percentile, record
from serving import served

from atelier.app.store.home import Home, open_home

CLIENTS, SECONDS = 200, 60.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = open_home(tmp_path / "home")
    for number in range(20):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(home.gallery / f"20260101-0000{number:02}-000000-abcdef.png")
    return home


async def run_handler(web: httpx.AsyncClient, number: int) -> httpx.Response:
    """Run a handler as a page does; what its stream says last decides on the status."""
    session = uuid4().hex
    joined = await web.post("/gradio_api/queue/join", json={"fn_index": number, "data": [], "session_hash": session})
    if joined.status_code == 200:
        async with web.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                if message.get("msg") == "process_completed":
                    joined.status_code = 200 if message["success"] else 500
                    break
    return joined


async def client(
    web: httpx.AsyncClient, home: Home, handlers: list[int], until: float, dice: random.Random
) -> list[tuple[str, int, float]]:
    """What a browser asks for while a person turns pages: pages, pictures, and what handlers say."""
    asked: list[tuple[str, int, float]] = []
    pictures = sorted(home.gallery.iterdir())
    while time.monotonic() < until:
        kind = dice.choice(("page", "picture", "picture", "health", "handler"))
        started = time.monotonic()
        match kind:
            case "page":
                answer = await web.get(dice.choice(("/", "/gallery", "/jobs", "/library")))
            case "picture":
                answer = await web.get(f"/gradio_api/file={dice.choice(pictures)}")
            case "handler":
                answer = await run_handler(web, dice.choice(handlers))
            case _:
                answer = await web.get("/health")
        asked.append((kind, answer.status_code, time.monotonic() - started))
        await asyncio.sleep(dice.uniform(0.5, 1.5))
    return asked


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_clients_get_no_error(home: Home) -> None:
    async def all_clients(address: str, handlers: list[int]) -> list[tuple[str, int, float]]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as web:
            until = time.monotonic() + SECONDS
            each = [client(web, home, handlers, until, random.Random(number)) for number in range(CLIENTS)]
            return [request for asked in await asyncio.gather(*each) for request in asked]

    with served(home) as (web, process):
        config = web.get("/config").json()
        handlers = [one["id"] for one in config["dependencies"] if not one["inputs"] and one["backend_fn"]
                    and any(event == "load" for _, event in one["targets"])]   # fmt: skip
        before = process.memory_info().rss
        asked = asyncio.run(all_clients(str(web.base_url), handlers))
        grown = (process.memory_info().rss - before) / 1e6
        rows = []
        for kind in ("page", "picture", "handler", "health", "all"):
            times = [seconds for name, _, seconds in asked if kind in (name, "all")]
            errors = [status for name, status, _ in asked if kind in (name, "all") and status != 200]
            rows.append({"request": kind, "count": f"{len(times):,}", "p50 (ms)": percentile(times, 50),
                         "p95 (ms)": percentile(times, 95), "p99 (ms)": percentile(times, 99), "errors": len(errors),
                         "server grew (MB)": f"{grown:.0f}" if kind == "all" else ""})
        record(f"Load: {CLIENTS} clients for {SECONDS:.0f} s", rows)
    assert len(asked) > CLIENTS and {status for _, status, _ in asked} == {200}
