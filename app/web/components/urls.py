"""Addresses of pages and of the home's files. A file of its own, because every page and panel makes links with it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote


def page_url(page: str, **query: str) -> str:
    """Path of a page, with a query."""
    path = "/" if page == "create" else f"/{page}"
    return path + ("?" + "&".join(f"{key}={quote(value)}" for key, value in query.items()) if query else "")


def file_url(path: Path) -> str:
    """Address of a file of the home that pages may show; it changes when the file does."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    return f"/gradio_api/file={quote(str(path))}?{changed}"
