"""A Redis server of the test's own: on a free port, in memory alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import free_port, until


@contextmanager
def redis_server(folder: Path, port: int = 0) -> Iterator[str]:
    """Start a Redis server; gives its URL. Skips the test where there is none."""
    redis = pytest.importorskip("redis", reason="The package redis is missing: pip install redis.")
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("There is no redis-server here. On Debian: apt-get install redis-server.")
    port = port or free_port()
    process = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                                "--dir", str(folder)], stdout=subprocess.DEVNULL)   # fmt: skip
    url = f"redis://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with redis.Redis.from_url(url) as connection:
                return connection.ping()
        except redis.exceptions.RedisError:
            return False

    try:
        until(answers)
        yield url
    finally:
        process.terminate()
        process.wait()
