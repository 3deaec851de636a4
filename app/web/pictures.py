"""The files of the home that a page may show: pictures, decided by what is in them, and nothing else.

Gradio would serve everything in a folder that pages show pictures of, with the type its name calls for: a log, a
checkpoint, or an HTML page with a script that runs as ours. So its addresses of files end here first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import make_thumbnail
from atelier.app.store.previews import LARGE, SMALL

PREFIX = "/gradio_api/file"
RUN_PICTURES = ("previews", "pairs", "grid")   # folders inside a run's
_THUMBNAIL = re.compile(rf"([0-9a-f]{{32}})-({SMALL}|{LARGE})\.webp")
_KEEP = {"cache-control": "private, max-age=86400"}   # an address changes when its file does


class Pictures:
    """Answer addresses of files: pictures of the home; what was uploaded or offered is left to Gradio."""

    def __init__(self, app: ASGIApp, home: Home, passed: Sequence[Path]) -> None:
        self.app, self.home, self.passed = app, home, [path.resolve() for path in passed]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(PREFIX)[1:]
        if self._is_passed(path):
            return await self.app(scope, receive, send)
        found = await run_in_threadpool(self._find, path) if scope["method"] in ("GET", "HEAD") else None
        answer = FileResponse(found[0], media_type=found[1], headers=_KEEP) if found else _NOT_SERVED
        await answer(scope, receive, send)

    def _find(self, path: str) -> tuple[Path, str] | None:
        """Find a picture; an adapter's small one is made if it is missing."""
        thumbnail = _THUMBNAIL.fullmatch(Path(path).name) if Path(path).parent == self.home.thumbnails else None
        if thumbnail and not Path(path).exists():
            with suppress(HomeError):   # the disk is full: the adapter can be used without
                make_thumbnail(self.home, thumbnail[1], int(thumbnail[2]))
        return picture(self.home, path)

    def _is_passed(self, path: str) -> bool:
        real = _real(path)
        return real is not None and any(real.is_relative_to(place) for place in self.passed)


_NOT_SERVED = JSONResponse({"detail": "This file is not served."}, 403)


def picture(home: Home, path: str) -> tuple[Path, str] | None:
    """Find a picture of the gallery, of a run or of an adapter by its path: the file and its media type; else None."""
    given, real = Path(path), _real(path)
    folders = (home.gallery, home.runs, home.thumbnails)
    folder = next((folder for folder in folders if given.is_relative_to(folder)), None)
    if real is None or folder is None:
        return None
    inside = given.relative_to(folder)
    # A link, or a way up and down again, ends elsewhere than it says.
    if real != folder.resolve() / inside or not real.is_file():
        return None
    if folder == home.runs and (len(inside.parts) != 3 or inside.parts[1] not in RUN_PICTURES):
        return None
    kind = media_type(real)
    return (real, kind) if kind else None


def media_type(path: Path) -> str:
    """What kind of picture a file holds, by its first bytes: PNG, JPEG or WebP; empty text for anything else."""
    with path.open("rb") as file:
        start = file.read(12)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if start[:4] == b"RIFF" and start[8:] == b"WEBP" else ""


def _real(path: str) -> Path | None:
    try:
        return Path(path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
