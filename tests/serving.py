"""A web server of the test's own, and what a browser sends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import psutil
from processes import free_port

from atelier.app.store.home import Home

SERVE = """
import os
import sys
from ipaddress import ip_network
from pathlib import Path
from atelier.app.store.home import open_home
from atelier.app.web.server import serve
proxies = [ip_network(address) for address in sys.argv[3:]]
serve(open_home(Path(sys.argv[1])), port=int(sys.argv[2]), worker=False, proxies=proxies, names=["studio.example"],
      root_path=os.environ.get("TEST_ROOT_PATH", ""))
"""


@contextmanager
def served(home: Home, *proxies: str, **environment: str) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """A server over a home, in a process of its own; what it wrote must be its address and nothing else."""
    port = free_port()
    command = [sys.executable, "-c", SERVE, str(home.path), str(port), *proxies]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", **environment})   # as the command
    assert process.stdout
    try:
        assert process.stdout.readline() == f"Atelier is open at http://127.0.0.1:{port}  (press Ctrl+C to stop)\n"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client, psutil.Process(process.pid)
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    assert rest == "", rest


def ask(web: httpx.Client, handler: int, data: Sequence[Any], event: Any = None) -> dict[str, Any]:
    """Run a handler by its number, as a page does; returns the message that ends it."""
    session = uuid4().hex
    body = {"fn_index": handler, "data": list(data), "session_hash": session, "event_data": event}
    joined = web.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return {"success": False, "output": joined.json()}
    with web.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data: ") or "{}")
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("the handler never ended")


def upload(web: httpx.Client, name: str, content: bytes) -> str:
    """Upload a file; returns the path under which the server keeps it."""
    answer = web.post("/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def named(path: str) -> dict[str, Any]:
    """How a page names a file in a request."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
