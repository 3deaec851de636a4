"""What the journeys stand on: a home for each file of tests, the product over it, and a browser that is watched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.browsing import ARGUMENTS, Server, Watch
from playwright.sync_api import Browser, Page, sync_playwright

from atelier.app.jobs.jobs import cancel, list_runs, worker_alive
from atelier.app.jobs.worker_process import stop_orphaned_worker
from atelier.app.store.home import Home, open_home


@pytest.fixture(scope="module")
def home_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journey") / "home"


@pytest.fixture(scope="module")
def home(home_path: Path) -> Home:
    return open_home(home_path)


@pytest.fixture(scope="module")
def server(home_path: Path) -> Iterator[Server]:
    (home_path.parent / "tmp").mkdir()
    server = Server(home_path)
    yield server
    for state in list_runs(open_home(home_path)):
        cancel(open_home(home_path), state.id)   # what a test that failed has left, a paused run for one
    server.process.terminate()
    server.process.communicate(timeout=60)
    left = worker_alive(open_home(home_path))
    stop_orphaned_worker(open_home(home_path))
    assert not left, "the server closed, and its worker lives on"


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def watch(browser: Browser, url: str) -> Iterator[Watch]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light", base_url=url)
    watch = Watch(context, url)
    yield watch
    context.close()
    watch.check()


@pytest.fixture
def page(watch: Watch) -> Page:
    page = watch.context.new_page()
    page.set_default_timeout(120_000)
    return page
