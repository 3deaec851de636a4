"""Files that come in from a browser and go out to one: the only two ways a path crosses the page.

A page names its files by path, and a request may name any path. Gradio checks them in an app that was launched, and
skips the check in one that is mounted; it also fetches web addresses and lets folders through. So every input of every
handler passes :func:`uploaded` before Gradio touches it (:func:`check_inputs`), and a path that arrives as plain
text, as in the data of an event, must be passed to it by the handler.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from atelier.app.text import shared
from atelier.app.web.components.gradio_internals import event_data, upload_folder
from atelier.app.web.components.panel import panel

Message = dict[str, str]
"""What became of a dropped file: a ``text``, and ``ok`` where it was taken."""
MOST_MESSAGES = 50
_OFFERED = "offered"   # below the upload folder: what handlers give to be downloaded


def check_inputs(inputs: list[Any]) -> None:
    """Check every path among the inputs of a handler.

    Raises:
        ValueError: one of them was not uploaded.
    """
    for path in _paths(inputs):
        uploaded(path)


def uploaded(path: str) -> Path:
    """Resolve a path that a request gave.

    Raises:
        ValueError: it is not a plain file inside the upload folder, by its own name and not through a link.
    """
    with suppress(OSError, ValueError, RuntimeError):   # too long, a NUL, a loop of links
        given, real = Path(path), Path(path).resolve(strict=True)
        folder = upload_folder().resolve()
        if given.is_absolute() and not given.is_symlink() and real.is_relative_to(folder) and real.is_file():
            return real
    raise ValueError(shared.NOT_UPLOADED)


def upload_queue(field: str) -> Any:
    """Place the queue of files for a field: what is chosen, pasted or dropped while others are uploaded waits its turn.

    Listen with ``queue.uploaded(fn, …)``, once for each drop, and read the files with :func:`uploaded_files`.
    """
    return panel("upload-queue", {"field": f"#{field}", "uploading": shared.UPLOADING, "failed": shared.UPLOAD_FAILED},
                 elem_id=f"{field}-queue")   # fmt: skip


def uploaded_files(event: gr.EventData) -> list[Path]:
    """The files of a drop that an upload queue tells of.

    Raises:
        ValueError: one of them was not uploaded.
    """
    data = event_data(event)
    paths = data.get("paths") if isinstance(data, dict) else None
    return [uploaded(str(path)) for path in paths] if isinstance(paths, list) else []


def newest_messages(so_far: Sequence[Message]) -> dict[str, Any]:
    """The value of the panel ``import-results``: what became of the files that were dropped last.

    The list stands in a ``gr.State``, and handlers append to it: several drops are taken at once, and none of them may
    hide what another one said.
    """
    return {"messages": so_far[:-MOST_MESSAGES - 1 : -1]}


def without_foreign_files(answer: Any) -> Any:
    """Make everything in a handler's answer plain data that Gradio would take for a file and that is none of ours.

    A file of ours lies in the upload folder and has no address. Gradio knows a file by its ``meta``.
    """
    if isinstance(answer, list | tuple):
        return type(answer)(map(without_foreign_files, answer)) if type(answer) in (list, tuple) else answer
    if not isinstance(answer, dict):
        return answer
    kept = {key: without_foreign_files(value) for key, value in answer.items()}
    if isinstance(answer.get("path"), str) and not _is_ours(answer):
        kept.pop("meta", None)
    return kept


def _is_ours(file: dict[Any, Any]) -> bool:
    with suppress(ValueError):
        return isinstance(file.get("meta"), dict) and not file.get("url") and bool(uploaded(file["path"]))
    return False


def offer(file: Path) -> str:
    """Make a file ready to be downloaded; returns the path to give to a component.

    Gradio hands out what lies in its own folder. A second name costs nothing, where a copy of a model costs its size.
    """
    shelf = upload_folder() / _OFFERED / secrets.token_hex(8)
    shelf.mkdir(mode=0o700, parents=True)
    try:
        os.link(file, shelf / file.name)
    except OSError:   # another disk, or one without hard links
        shutil.copyfile(file, shelf / file.name)
    return str(shelf / file.name)


def forget_old_files(seconds: float = 86_400) -> None:
    """Delete what has lain in the upload folder for longer, from servers before this one; Gradio knows only its own."""
    folder = upload_folder()
    for each in [*folder.iterdir(), *(folder / _OFFERED).glob("*")]:
        if each.name != _OFFERED and time.time() - each.lstat().st_mtime > seconds:
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


def _paths(values: list[Any]) -> Iterator[str]:
    """Every text that Gradio may take for a file's path, however deep: ``{"path": …}`` is how it writes a file."""
    left: list[Any] = [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
