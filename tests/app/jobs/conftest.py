"""A home whose jobs wait in a real Redis; tests of the queue on one machine have a home of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import redis_server

from atelier.app.jobs.redis_queue import RedisQueue, redis_queue
from atelier.app.store.home import Home, open_home


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Redis server."""
    with redis_server(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture
def home(own_home: Path, url: str) -> Home:
    """A home that several machines could share."""
    return open_home(own_home, url)


@pytest.fixture
def queue(home: Home) -> Iterator[RedisQueue]:
    """Its queue."""
    with redis_queue(home) as opened:
        yield opened
