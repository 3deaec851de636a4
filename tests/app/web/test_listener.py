"""The port the web server takes, and what is said when the system refuses it."""

from __future__ import annotations

import errno
import socket

import pytest

from atelier.app.web import listener
from atelier.app.web.listener import FIRST_PORT, TRIED_PORTS, ServeError, bind


class Refusing(socket.socket):
    """A socket to which the system says no at some ports."""

    refused: dict[int, OSError]
    asked: list[int]

    def bind(self, address: tuple[str, int]) -> None:   # type: ignore[override]
        self.asked.append(address[1])
        if error := self.refused.get(address[1]):
            raise error
        super().bind((address[0], 0))


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> type[Refusing]:
    monkeypatch.setattr(Refusing, "refused", {}, raising=False)
    monkeypatch.setattr(Refusing, "asked", [], raising=False)
    monkeypatch.setattr(listener.socket, "socket", Refusing)
    return Refusing


IN_USE, DENIED = OSError(errno.EADDRINUSE, "Address already in use"), PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("refusal", [IN_USE, DENIED])
def test_a_port_the_system_refuses_is_passed_over(refusing: type[Refusing], refusal: OSError):
    refusing.refused = {FIRST_PORT: refusal, FIRST_PORT + 1: refusal}
    bind("127.0.0.1", 0).close()
    assert refusing.asked == [FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2]


def test_when_all_are_refused_the_system_chooses(refusing: type[Refusing]):
    refusing.refused = dict.fromkeys(range(FIRST_PORT, FIRST_PORT + TRIED_PORTS), IN_USE)
    bind("127.0.0.1", 0).close()
    assert refusing.asked[-1] == 0 and len(refusing.asked) == TRIED_PORTS + 1


@pytest.mark.parametrize("refusal", [IN_USE, DENIED])
def test_a_port_somebody_asked_for_is_that_or_none(refusing: type[Refusing], refusal: OSError):
    refusing.refused = {8000: refusal}
    with pytest.raises(ServeError, match=f"8000.*{refusal.strerror}"):
        bind("127.0.0.1", 8000)
    assert refusing.asked == [8000]


def test_a_host_that_is_not_ours_is_refused_at_the_first_port(refusing: type[Refusing]):
    refusing.refused = {FIRST_PORT: OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")}
    with pytest.raises(ServeError, match="Cannot assign"):
        bind("192.0.2.1", 0)
    assert refusing.asked == [FIRST_PORT]


def test_the_number_of_a_taken_port_is_the_systems_own(refusing: type[Refusing], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(errno, "EADDRINUSE", 48)   # as on macOS
    refusing.refused = {FIRST_PORT: OSError(48, "Address already in use")}
    bind("127.0.0.1", 0).close()
    assert refusing.asked == [FIRST_PORT, FIRST_PORT + 1]
