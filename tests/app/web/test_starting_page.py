"""What a browser is shown before the app is loaded."""

from __future__ import annotations

import socket
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from atelier.app.text import server as words
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
