"""The parts of the Settings page for disk space and for help: keys, and a file for those who help with a problem."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.services.settings.diagnostics import write_diagnostics
from atelier.app.services.settings.storage import StorageEntry, clean_up, list_storage
from atelier.app.store.home import Home
from atelier.app.text import settings as words
from atelier.app.web.components.page_frame import UNQUEUED, inform, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.uploads import offer

FILE_NAME = "atelier-diagnostics.zip"


def place_storage(demo: gr.Blocks, home: Home) -> None:
    """Place the sizes of everything in the home, with what can be cleaned up."""
    with gr.Column(elem_classes="surface", elem_id="storage"):
        listed = panel("storage", {})

    def act(event: gr.EventData) -> dict[str, Any]:
        """Ask before something is deleted for good, then delete it."""
        action, kind = action_of(event)
        if action == "clean":
            with show_errors():
                inform(words.freed(clean_up(home, kind)))
        return storage_panel(list_storage(home), kind if action == "ask" else "")

    listed.action(act, None, listed, **UNQUEUED)
    demo.load(lambda: storage_panel(list_storage(home)), None, listed, show_progress="hidden",
              api_visibility="private")   # fmt: skip


def storage_panel(entries: list[StorageEntry], asked: str = "") -> dict[str, Any]:
    """What the panel shows; for the kind ``asked`` a question stands in place of the button."""
    return {"entries": [
        {"kind": entry.kind, "name": words.STORAGE_KINDS[entry.kind], "size": format_bytes(entry.bytes),
         "free": words.can_free(entry.removable) if entry.removable else "",
         "note": words.CLEAN_UP_NOTES.get(entry.kind, "") if entry.removable else "", "asked": entry.kind == asked}
        for entry in entries
    ]}   # fmt: skip


def place_help(home: Home) -> None:
    """Place the keys that the pages know, and the file for those who help."""
    with gr.Accordion(words.KEYBOARD, open=False, elem_id="keyboard", elem_classes="surface"):
        panel("shortcuts", [{"keys": keys, "does": does} for keys, does in words.SHORTCUTS.items()])
    with gr.Column(elem_classes="surface"):
        gr.Markdown(f"## {words.DIAGNOSTICS}")
        gr.Markdown(words.DIAGNOSTICS_HINT, elem_classes="hint")
        make = gr.Button(words.MAKE_DIAGNOSTICS, elem_id="make-diagnostics")
        file = gr.DownloadButton(FILE_NAME, visible=False, elem_id="diagnostics")
    made = make.click(lambda: _diagnostics(home), None, file, api_visibility="private")
    made.success(None, None, None, js=press_when_shown("diagnostics"))


def _diagnostics(home: Home) -> Any:
    with show_errors(), TemporaryDirectory(dir=home.state) as folder:
        return gr.DownloadButton(value=offer(write_diagnostics(home, Path(folder) / FILE_NAME)), visible=True)
