"""Addresses of pages and of the home's files. A file of its own, because every page and panel makes links with it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from atelier.app.store.adapter_notes import AdapterNotes
from atelier.app.store.gallery import thumbnail_file
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard
from atelier.app.store.previews import thumbnail_path

ROOT_PATH = "GRADIO_ROOT_PATH"   # Gradio's own name for it in the environment


def root_path() -> str:
    """What a reverse proxy has before every path, such as ``/atelier``; empty without one."""
    return os.environ.get(ROOT_PATH, "")


def page_path(page: str) -> str:
    """Path of a page inside the application."""
    return "/" if page == "create" else f"/{page}"


def page_url(page: str, **query: str) -> str:
    """Path of a page as browsers ask for it, with a query."""
    path = root_path() + page_path(page)
    return path + ("?" + "&".join(f"{key}={quote(value)}" for key, value in query.items()) if query else "")


def thumbnail_url(card: AdapterCard, side: int) -> str:
    """Address of an adapter's small picture, which is made when it is first asked for; empty where it has none."""
    path = thumbnail_path(Home(card.path.parent.parent), card.thumbnail, side)
    return f"{root_path()}/gradio_api/file={quote(str(path))}" if card.thumbnail else ""


def file_url(path: Path) -> str:
    """Address of a file of the home that pages may show; it changes when the file does."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    return f"{root_path()}/gradio_api/file={quote(str(path))}?{changed}"


def cover_url(card: AdapterCard, notes: AdapterNotes) -> str:
    """Address of the picture of the gallery that was chosen to show an adapter; empty where none is."""
    try:
        small = thumbnail_file(Home(card.path.parent.parent), notes.cover) if notes.cover else None
    except HomeError:   # deleted since, or the disk is full
        small = None
    return file_url(small) if small else ""
