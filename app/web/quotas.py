"""How much one address may ask for, and how much uploads may take of the disk."""

from __future__ import annotations

import math
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier.app.text import server as words

UPLOAD = "/gradio_api/upload"
_MOST_ADDRESSES = 4096   # counted at once; those that asked longest ago make room


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Limits of a server. A page asks for about 90 files when it opens and for a few answers a second after that."""

    requests_per_second: float = 500.0      # from one address, in the long run
    requests_at_once: int = 5000            # that it may have saved up
    body_bytes: int = 16_000_000            # of a request that is no upload
    upload_bytes: int = 10_000_000_000      # of all files in the upload folder
    upload_files: int = 20_000              # and how many there may be
    spare_bytes: int = 500_000_000          # stay free on the disk
    body_seconds: float = 60.0              # for a body of any size, and beside that
    bytes_per_second: float = 20_000.0      # in the mean, from a sender that is not slow on purpose

    def seconds_for(self, length: float) -> float:
        """How long a body of so many bytes may take to arrive."""
        return self.body_seconds + length / self.bytes_per_second


class Requests:
    """Requests by address: each has a store of them that fills up again with time (a token bucket)."""

    def __init__(self, quotas: Quotas, clock: Callable[[], float] = time.monotonic) -> None:
        self._quotas, self._clock = quotas, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()   # address → how many, when that was

    def take(self, address: str) -> bool:
        """Take one; False when there is none left."""
        address, now, most = network_of(address), self._clock(), float(self._quotas.requests_at_once)
        left, then = self._left.get(address, (most, now))
        left = min(most, left + (now - then) * self._quotas.requests_per_second)
        self._left[address] = (max(0.0, left - 1), now)
        self._left.move_to_end(address)
        if len(self._left) > _MOST_ADDRESSES:
            self._left.popitem(last=False)
        return left >= 1


def network_of(address: str) -> str:
    """An address; of IPv6 its network, because one household has 2**64 of them."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    return str(ip_network(f"{address}/64", strict=False)) if found.version == 6 else address


def is_within(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether an address is in one of some networks; False for what is no address."""
    try:
        return any(ip_address(address) in network for network in networks)
    except ValueError:
        return False


class Limits:
    """Refuse what is beyond the quotas before its body is read."""

    def __init__(self, app: ASGIApp, quotas: Quotas, uploads: Path) -> None:
        self.app, self.quotas, self.uploads = app, quotas, uploads
        self.requests = Requests(quotas)
        self.coming = 0.0   # bytes of uploads under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not self.requests.take(scope["client"][0] if scope["client"] else ""):
            return await JSONResponse({"detail": words.TOO_MANY_REQUESTS}, 429, {"retry-after": "1"})(
                scope, receive, send)
        length = body_length(Headers(scope=scope))
        is_upload = scope["path"].rstrip("/") == UPLOAD
        status, why = await self._refusal(length, is_upload)
        if status:
            return await JSONResponse({"detail": why}, status)(scope, receive, send)
        self.coming += length if is_upload else 0
        try:
            await self.app(scope, self._in_time(receive, length), send)
        finally:
            self.coming -= length if is_upload else 0

    def _in_time(self, receive: Receive, length: float) -> Receive:
        """Receive a body until its time is over: then the sender counts as gone."""
        if not length:
            return receive
        until = anyio.current_time() + self.quotas.seconds_for(length)
        left = length

        async def receive_in_time() -> Message:
            """The next message of the sender; one that takes too long has disconnected."""
            nonlocal left
            if left <= 0:   # what comes now says that the sender has gone, maybe hours later
                return await receive()
            with anyio.CancelScope(deadline=until):
                message = await receive()
                left -= len(message.get("body", b""))
                return message
            left = 0
            return {"type": "http.disconnect"}

        return receive_in_time

    async def _refusal(self, length: float, is_upload: bool) -> tuple[int, str]:
        if length == math.inf:
            return 411, words.LENGTH_NEEDED
        if not is_upload:
            return (413, words.BODY_TOO_LARGE) if length > self.quotas.body_bytes else (0, "")
        sizes = await anyio.to_thread.run_sync(file_sizes, self.uploads)   # of thousands, beside the event loop
        if len(sizes) >= self.quotas.upload_files:
            return 413, words.too_many_uploads(len(sizes))
        taken = self.coming + sum(sizes)
        if taken + length > self.quotas.upload_bytes:
            return 413, words.uploads_full(taken, self.quotas.upload_bytes)
        free = shutil.disk_usage(self.uploads).free - self.coming
        return (507, words.NO_ROOM_FOR_UPLOAD) if length + self.quotas.spare_bytes > free else (0, "")


def body_length(headers: Headers) -> float:
    """Bytes of the body that a request announces; infinite when it does not say how many."""
    text = headers.get("content-length", "")
    if "transfer-encoding" in headers or (text and not text.isdecimal()):
        return math.inf
    return int(text[:20] or 0)


def file_sizes(folder: Path) -> list[int]:
    """Bytes of each file and folder in a folder; a file with several names counts once, as on the disk."""
    sizes: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:   # Gradio cleans up at the same time
            continue
        sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return list(sizes.values())
