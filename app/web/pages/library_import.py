"""Files that are dropped on the Library are imported, one drop after another, and each that can't be says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from atelier.app.services.import_child import import_files
from atelier.app.store.home import Home
from atelier.app.text import library as words
from atelier.app.web.components.page_frame import show_errors
from atelier.app.web.components.panel import panel
from atelier.app.web.components.uploads import Message, newest_messages, upload_queue, uploaded_files


class ImportForm(NamedTuple):
    """The field for files, its queue, the accordion around it, and what became of each file."""

    drop: gr.File
    queue: Any
    accordion: gr.Accordion
    results: Any


def place_import() -> ImportForm:
    """Its queue stands beside it, and takes what is dropped anywhere on the page."""
    queue = upload_queue("import-files")   # outside: what a closed accordion holds is not there yet
    with gr.Accordion(words.IMPORT, open=False, elem_id="import") as accordion:
        drop = gr.File(file_count="multiple", file_types=[".safetensors"], label=words.IMPORT_DROP,
                       elem_id="import-files", elem_classes="drop-zone", height=120)   # fmt: skip
        return ImportForm(drop, queue, accordion, panel("import-results", {}))


def connect_import(
    home: Home, form: ImportForm, wanted: Sequence[Any], shown: Sequence[Any],
    show: Callable[[Sequence[Any], str], list[Any]],
) -> None:   # fmt: skip
    """Import what is dropped, and show the library with it.

    Args:
        home: where to.
        form: the form.
        wanted: the components that say what is looked for.
        shown: the components of the list.
        show: from the values of ``wanted`` and an adapter to open, the values of ``shown``.
    """

    def take(files: Sequence[str | Path], so_far: list[Message], *values: Any) -> list[Any]:
        """Import files."""
        name = _import(home, files, so_far)
        return [*show(values, name), None, gr.Accordion(open=True), newest_messages(so_far)]

    def take_queued(event: gr.EventData, so_far: list[Message], *values: Any) -> list[Any]:
        """Import the files of a drop."""
        with show_errors():
            files = uploaded_files(event)
        return take(files, so_far, *values)

    changed = [*shown, form.drop, form.accordion, form.results]
    options: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", "trigger_mode": "multiple"}
    given = [gr.State([]), *wanted]
    form.queue.uploaded(take_queued, given, changed, **options)
    # The field itself hears only of what comes before its queue is there.
    form.drop.upload(lambda files, *others: take(files or [], *others), [form.drop, *given], changed, **options)


def _import(home: Home, files: Sequence[str | Path], so_far: list[Message]) -> str:
    """Import files and note what became of each; returns the name of the last adapter."""
    name = ""
    with show_errors():
        for result in import_files(home, [Path(file) for file in files]):
            name = result.name or name
            text = words.imported(result.name, " ".join(result.notes)) if result.name else result.reason
            so_far.append({"text": text, "ok": "yes" if result.name else ""})
    return name
