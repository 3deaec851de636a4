"""What a browser is shown before the app is loaded."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from processes import until

from atelier.app.text import server as words
from atelier.app.web import starting_page as starting
from atelier.app.web.starting_page import starting_page


def test_the_page_answers_until_the_app_does_and_leaves_the_socket_as_it_was():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with starting_page(listener):
            socket.create_connection(address).close()   # one that says nothing holds nobody up
            for _ in range(2):
                with pytest.raises(HTTPError) as answer:
                    urlopen(f"http://127.0.0.1:{address[1]}/library?a=1", timeout=10)
                with answer.value as page:
                    assert page.code == 503
                    assert words.STARTING_TITLE in (text := page.read().decode()) and 'http-equiv="refresh"' in text
        assert listener.gettimeout() is None
        with socket.create_connection(address), listener.accept()[0]:   # whoever comes now is left to the app
            pass


def test_whoever_asks_a_byte_at_a_time_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_READ_SECONDS", 0.2)
    sent: list[int] = []

    def drip(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection, suppress(OSError):
            for _ in range(60):
                sent.append(connection.send(b"a"))
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=listener.getsockname()[1:])
        with starting_page(listener):
            thread.start()
            until(lambda: len(sent) > 1)
        assert len(sent) < 60, "the start waited for all of it"
    thread.join()
