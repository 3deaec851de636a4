"""How far the download of a base model is, as the Create page and the Settings page show it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atelier.app.services.model_downloads import Download, ModelDownloads
from atelier.app.text import settings as words
from atelier.app.web.components.page_frame import UNQUEUED, show_errors
from atelier.training.base_models.hub import needs_download

LOOK_SECONDS = 2.0   # between two looks at the downloads


def download_row(id: str, title: str, state: Download | None) -> dict[str, Any]:
    """A model with its download, as the panels take it."""
    busy = state is not None and state.running
    here = not busy and not needs_download(id)
    return {
        "id": id, "title": title, "about": "", "facts": "", "here": here, "busy": busy, "offer": not busy and not here,
        "error": state.error if state and not here else "", "percent": state.percent if state else 0,
        "label": words.downloading(state.done, state.of) if state else "",
    }   # fmt: skip


def connect_base_download(downloads: ModelDownloads, shown: Any, base: Any) -> gr.Textbox:
    """Let the panel ``base-download`` offer the model chosen in ``base`` where it is not here, and show the progress.

    Returns:
        A hidden text that changes when the model has come.
    """
    come, timer = gr.Textbox(visible=False), gr.Timer(LOOK_SECONDS)

    def look(chosen: str | None) -> list[Any]:
        """The download of the chosen model, and its id once it is here."""
        state = next((one for one in downloads.all() if one.id == chosen), None)
        row = download_row(chosen or "", "", state) if state or needs_download(chosen or "") else {}
        return [row, chosen if state and row.get("here") else gr.skip()]

    def press(chosen: str | None) -> list[Any]:
        """Start the download of the chosen model."""
        with show_errors():
            downloads.start(chosen or "")
        return look(chosen)

    base.change(look, base, [shown, come], **UNQUEUED)
    timer.tick(look, base, [shown, come], **UNQUEUED)
    shown.action(press, base, [shown, come], **UNQUEUED)
    return come
