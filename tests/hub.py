"""A stand-in for the Hugging Face hub: a small HTTP server that speaks as much of its language as downloads need."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Models by id, each a folder of files; and what was asked of the server."""

    models: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    extra: dict[str, bytes] = field(default_factory=dict)   # files that every model has as well
    breaks: dict[str, int] = field(default_factory=dict)    # file → bytes after which each connection breaks
    damaged: set[str] = field(default_factory=set)          # files that arrive with one byte changed
    asked: list[tuple[str, str, str]] = field(default_factory=list)   # method, path, range
    sent: dict[str, int] = field(default_factory=dict)      # file → bytes
    url: str = ""

    def files(self, model: str) -> dict[str, bytes]:
        folder = self.models[model]
        own = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return {**own, **self.extra}


@contextmanager
def serving_hub(models: dict[str, Path], **options: Any) -> Iterator[Hub]:
    """Serve models while this is open."""
    hub = Hub(models, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(hub, self, body=True)

        def do_HEAD(self) -> None:
            _answer(hub, self, body=False)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass   # a download that is stopped leaves its connection

    server = Server(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(hub: Hub, request: BaseHTTPRequestHandler, *, body: bool) -> None:
    path = request.path.split("?")[0]
    hub.asked.append((request.command, path, request.headers.get("Range", "")))
    api = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([\w.-]+))?", path)
    file = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path)
    model = (api or file or [None, ""])[1]
    if model not in hub.models:
        return _send(request, 404, b'{"error":"Repository not found"}', body, {"X-Error-Code": "RepoNotFound"})
    if model in hub.gated and file:
        return _send(request, 403, b'{"error":"gated"}', body, {"X-Error-Code": "GatedRepo"})
    if api:
        return _send(request, 200, _api(hub, model, api[2] == "tree"), body, {})
    assert file
    content = hub.files(model).get(file[3])
    if content is None:
        return _send(request, 404, b"", body, {"X-Error-Code": "EntryNotFound"})
    return _send_file(hub, request, file[3], content, body)


def _api(hub: Hub, model: str, tree: bool) -> bytes:
    if not tree:
        return json.dumps({"id": model, "sha": COMMIT, "siblings": []}).encode()
    return json.dumps([{"type": "file", "path": name, "size": len(content), "oid": _tag(name, content)}
                       for name, content in hub.files(model).items()]).encode()   # fmt: skip


def _tag(name: str, content: bytes) -> str:
    """As the hub has it: of large files the hash of their contents, of small ones that of git."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _send(request: BaseHTTPRequestHandler, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(content)


def _send_file(hub: Hub, request: BaseHTTPRequestHandler, name: str, content: bytes, body: bool) -> None:
    start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    first = int(start[1]) if start else 0
    part = content[first:]
    if name in hub.damaged:
        part = part[:-1] + bytes([part[-1] ^ 1])
    headers = {"ETag": f'"{_tag(name, content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    if start:
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
    limit = hub.breaks.get(name) if body else None
    if limit is None or len(part) <= limit:
        hub.sent[name] = hub.sent.get(name, 0) + (len(part) if body else 0)
        headers["Content-Type"] = "application/octet-stream"
        return _send(request, 206 if start else 200, part, body, headers)
    hub.sent[name] = hub.sent.get(name, 0) + limit
    request.send_response(206 if start else 200)
    for key, value in {**headers, "Content-Length": str(len(part))}.items():
        request.send_header(key, value)
    request.end_headers()
    request.wfile.write(part[:limit])
    request.wfile.flush()
    request.close_connection = True
    return None
