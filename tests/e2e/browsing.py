"""The product and a browser as a person has them: the server's process, what a page asks for and where it stumbles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Request

from atelier.app.text.server import STARTING
from atelier.app.web.listener import bind

AXE = os.environ.get("AXE", "")   # axe.min.js of the npm package axe-core
needs_axe = pytest.mark.skipif(not AXE, reason="AXE does not name axe.min.js")
ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "assets" / "examples" / "fox").glob("*.png"))[:5]
ARGUMENTS = [
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--hide-scrollbars",
    "--force-prefers-reduced-motion", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]   # fmt: skip
PATIENT = 600_000   # milliseconds; a training on a busy machine takes its time
# Leaving a page cuts its event stream: the browser says so, and nothing is wrong.
HARMLESS = re.compile(r"AbortError|Connection errored out|net::ERR_ABORTED")


class Server:
    """The product as a person starts it: web server and worker over one home, at one address."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with bind("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = ["serve", "--home", str(self.home), "--port", str(self.port)]
        outside = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        locks = str(self.home.parent / "tmp")   # device locks of its own: nobody else's training is waited for
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atelier.app.cli.main", *command], stdout=subprocess.PIPE, text=True,
            env={**outside, "TMPDIR": locks},
        )   # fmt: skip
        assert self.process.stdout
        assert self.process.stdout.readline() == f"{STARTING}\n"
        assert "Atelier is open" in self.process.stdout.readline()

    def kill(self) -> None:
        """Let it die as in a power cut: no handler runs."""
        self.process.kill()
        self.process.communicate(timeout=60)


class Watch:
    """What a page must not do: ask another site for anything, or stumble in its scripts.

    It listens only: a route of Playwright's would switch off the browser's cache, and every page be loaded anew.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context, self.url = context, url
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        context.on("request", self._seen)
        context.on("weberror", lambda error: self._note(str(error.error)))
        context.on("console", lambda message: self._note(message.text) if message.type == "error" else None)

    def _seen(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", "blob:")):
            self.elsewhere.append(request.url)

    def _note(self, text: str) -> None:
        if not HARMLESS.search(text):
            self.errors.append(text)

    def check(self) -> None:
        assert self.elsewhere == []
        assert self.errors == []


def visit(page: Page, path: str) -> None:
    """Open a page and wait until it answers to the keyboard."""
    page.goto(path, wait_until="domcontentloaded")   # never "networkidle": an event stream stays open
    page.locator("#page-header nav").wait_for()
    page.wait_for_function("document.title.endsWith('· Atelier')")   # set by the first script of the page
    page.wait_for_timeout(800)


def paint(page: Page, canvas: Locator, across: tuple[float, float]) -> None:
    """A stroke at half the height of a picture's editor, between two shares of its width.

    The editor shows its picture some time after its canvas, and takes no stroke before: it is painted once what is
    seen has not changed for a second, and again until it is seen.
    """
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    for _ in range(20):
        before, now = b"", canvas.screenshot()
        while now != before:
            page.wait_for_timeout(1000)
            before, now = now, canvas.screenshot()
        page.mouse.move(box["x"] + across[0] * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + across[1] * box["width"], box["y"] + box["height"] / 2, steps=8)
        page.mouse.up()
        page.mouse.move(0, 0)   # the brush's own mark is no stroke
        page.wait_for_timeout(300)
        if canvas.screenshot() != before:
            return
    raise AssertionError("no stroke is seen")


def serious_violations(page: Page) -> list[tuple[str, str]]:
    """The serious and critical ones that axe finds on a page as it is now, each with the first place."""
    page.wait_for_timeout(1000)
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


def fill(page: Page, elem_id: str, text: str) -> None:
    page.locator(f"#{elem_id} :is(textarea, input)").first.fill(text)


def value(page: Page, elem_id: str) -> str:
    return page.locator(f"#{elem_id} :is(textarea, input)").first.input_value()
