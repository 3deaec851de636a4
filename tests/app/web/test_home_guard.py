"""One server for a home, and sentences while the home is gone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from atelier.app.store.home import Home, open_home
from atelier.app.text.server import STARTING
from atelier.app.web.home_guard import HomeBusyError, HomePresent, note_address, only_server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def test_a_second_server_says_in_one_sentence_where_the_first_one_is(home: Home) -> None:
    with only_server(home):
        note_address(home, "0.0.0.0", 7861)
        command = [sys.executable, "-m", "atelier.app.cli.main", "serve", "--home", str(home.path)]
        second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert second.stderr == (f"atelier: Atelier is already open for {home.path} at http://127.0.0.1:7861. Use that "
                             "address, or choose another home with --home.\n")   # fmt: skip
    assert second.stdout == f"{STARTING}\n"


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff"])
def test_without_an_address_it_says_so_too(home: Home, content: bytes | None) -> None:
    if content is not None:
        (home.state / "server.json").write_bytes(content)
    with only_server(home), pytest.raises(HomeBusyError, match="Wait until it prints its address"), only_server(home):
        pass


def test_two_homes_can_be_served_and_one_again_after_its_server_ended(home: Home, tmp_path: Path) -> None:
    for _ in range(2):
        with only_server(home), only_server(open_home(tmp_path / "other")):
            note_address(home, "127.0.0.1", 1)
        assert not (home.state / "server.json").exists()


def test_a_killed_server_leaves_the_home_free(home: Home) -> None:
    def serve_and_die() -> None:
        with only_server(home):
            note_address(home, "127.0.0.1", 7860)
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=serve_and_die)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        process.start()
    process.join()
    with only_server(home):
        pass


def get(home: Home, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(HomePresent(PlainTextResponse("page"), home))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/library", headers=headers)

    return asyncio.run(ask())


def test_while_the_home_is_gone_there_are_sentences_and_then_everything_goes_on(home: Home) -> None:
    assert get(home).text == "page"
    home.path.rename(home.path.with_name("away"))
    page, call = get(home, accept="text/html"), get(home, accept="application/json")
    assert page.status_code == call.status_code == 503
    assert page.text == call.json()["detail"]
    assert page.text.startswith(f"The folder {home.path} is gone.")
    home.path.mkdir()   # the empty folder where a disk was mounted: nothing is made in it
    assert get(home).status_code == 503
    assert list(home.path.iterdir()) == []
    home.path.rmdir()
    home.path.with_name("away").rename(home.path)
    assert get(home).text == "page"


def test_a_folder_that_was_deleted_is_made_again(home: Home) -> None:
    shutil.rmtree(home.adapters)
    shutil.rmtree(home.gallery)
    assert get(home).text == "page"
    assert home.adapters.is_dir() and home.gallery.is_dir()
    home.runs.rmdir()
    home.runs.write_text("a file")
    assert "should be a folder" in get(home).text
