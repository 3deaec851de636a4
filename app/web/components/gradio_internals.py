"""What Atelier uses of Gradio beyond its documentation, in one place.

tests/app/web/test_gradio_internals.py watches it, and says what has moved when another version is installed.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.utils import get_upload_folder


def component_with(postprocess: Callable[[Any], Any], base: type, name: str) -> Any:
    """A class of components like ``base`` that passes every value through ``postprocess`` on its way to the page.

    It is made through ABCMeta, because Gradio's own way of making a component class writes a stub file beside the
    source.
    """
    body = {"__module__": __name__, "postprocess": lambda _self, value: postprocess(value)}
    return ABCMeta.__new__(ComponentMeta, name, (base,), body)


def event_data(event: gr.EventData) -> Any:
    """What a page's own script sent with an event: anything."""
    return event._data


def upload_folder() -> Path:
    """Where Gradio keeps the files that came in."""
    return Path(get_upload_folder())


class CheckedBlocks(gr.Blocks):
    """An app whose handlers get no inputs that ``check`` refuses with a ValueError."""

    def __init__(self, check: Callable[[list[Any]], None], **options: Any) -> None:
        super().__init__(**options)
        self._check = check
        # Gradio checks what handlers return, and once more what they get, only in an app that was launched.
        self.has_launched = True

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> list[Any]:
        """Check the inputs of a handler, then let Gradio read them."""
        try:
            self._check(inputs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return await super().preprocess_data(block_fn, inputs, *rest, **options)
