"""What Atelier uses of Gradio beyond its documentation, in one place.

tests/app/web/test_gradio_internals.py watches it, and says what has moved when another version is installed.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import route_utils, routes
from gradio.component_meta import ComponentMeta
from gradio.utils import get_upload_folder
from gradio_client import Client
from starlette.formparsers import MultiPartException

from atelier.adapters.core.parse import without_halves

MAX_FIELD_BYTES = 100_000   # of an upload's form; ours have none


def component_with(postprocess: Callable[[Any], Any], base: type, name: str) -> Any:
    """A class of components like ``base`` that passes every value through ``postprocess`` on its way to the page.

    It is made through ABCMeta, because Gradio's own way of making a component class writes a stub file beside the
    source.
    """
    body = {"__module__": __name__, "postprocess": lambda _self, value: postprocess(value)}
    return ABCMeta.__new__(ComponentMeta, name, (base,), body)


def event_data(event: gr.EventData) -> Any:
    """What a page's own script sent with an event: anything."""
    return without_halves(event._data)


def upload_folder() -> Path:
    """Where Gradio keeps the files that came in."""
    return Path(get_upload_folder())


class CheckedParser(route_utils.GradioMultiPartParser):
    """A reader of uploads that takes no large form field: Gradio keeps those in memory, whatever their size."""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a file or of a field.

        Raises:
            MultiPartException: the field is too large.
        """
        part = self._current_part
        if part.file is None and len(part.data) + end - start > MAX_FIELD_BYTES:
            raise MultiPartException("Only files can be uploaded.")
        super().on_part_data(data, start, end)


def limit_form_fields() -> None:
    """Let Gradio read uploads with :class:`CheckedParser` from now on."""
    for module in (route_utils, routes):
        module.GradioMultiPartParser = CheckedParser   # type: ignore[misc]


class CheckedBlocks(gr.Blocks):
    """An app whose handlers get no inputs that ``check`` refuses with a ValueError; ``clean`` changes their answers."""

    def __init__(self, check: Callable[[list[Any]], None], clean: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(**options)
        self._check, self._clean = check, clean
        # Gradio checks what handlers return, and once more what they get, only in an app that was launched.
        self.has_launched = True

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> list[Any]:
        """Check the inputs of a handler, then let Gradio read them."""
        try:
            self._check(inputs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return await super().preprocess_data(block_fn, without_halves(inputs), *rest, **options)

    async def postprocess_data(self, block_fn: Any, predictions: Any, *rest: Any, **options: Any) -> list[Any]:
        """Clean what a handler answers, then let Gradio move its files."""
        return await super().postprocess_data(block_fn, without_halves(self._clean(predictions)), *rest, **options)


def call_tools_as(
    demo: gr.Blocks, address: str, cookies: Mapping[str, str], check: Callable[[list[Any]], None]
) -> None:
    """Let Gradio's MCP server sign in to itself: it calls tools that wait in the queue through HTTP, as a client.

    It would make that client without credentials, for the address that a request names. A client uploads every file
    that its arguments name, here files of the server: ``check`` refuses those that a caller has not uploaded.
    """
    def prepare_checked(name: str, arguments: dict[str, Any]) -> Any:
        """The arguments of a tool, checked before anything reads them."""
        check([arguments])
        return prepare(name, arguments)

    client = cache(lambda: Client(address, download_files=False, verbose=False, analytics_enabled=False,
                                  httpx_kwargs={"cookies": dict(cookies)}))   # fmt: skip
    server: Any = demo.mcp_server_obj
    assert hasattr(server, "_get_or_create_client")
    prepare = server._prepare_tool_call_args
    server._get_or_create_client, server._prepare_tool_call_args = client, prepare_checked
