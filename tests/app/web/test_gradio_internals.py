"""What Atelier uses of Gradio beyond its documentation is still there, and does the same."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from atelier.app.web.components import gradio_internals
from atelier.app.web.components.gradio_internals import (
    CheckedBlocks,
    call_tools_as,
    component_with,
    event_data,
    upload_folder,
)

USED = (
    "gradio.component_meta.ComponentMeta", "gradio.utils.get_upload_folder", "gradio.blocks.Blocks.preprocess_data",
    "gradio.blocks.Blocks.postprocess_data",
    "gradio.blocks.Blocks.process_api", "gradio.components.HTML.postprocess",
    "gradio.route_utils.GradioMultiPartParser.on_part_data", "gradio.routes.GradioMultiPartParser",
    "gradio.mcp.GradioMCPServer._get_or_create_client", "gradio.mcp.GradioMCPServer._prepare_tool_call_args",
)   # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_nothing_has_moved(name: str):
    package, module, *rest = name.split(".")
    found = importlib.import_module(f"{package}.{module}")
    for part in rest:
        moved = f"gradio {gr.__version__} has no {name}: see app/web/components/gradio_internals.py"
        assert hasattr(found, part), moved
        found = getattr(found, part)


def test_the_data_of_an_event_is_what_the_page_sent():
    assert event_data(gr.EventData(None, {"act": "open", "id": "fox"})) == {"act": "open", "id": "fox"}


def test_a_component_changes_every_value_before_it_is_sent_and_writes_no_stub():
    made = component_with(str.upper, gr.HTML, "Loud")
    assert made("a").postprocess("fox") == "FOX"
    assert made.__name__ == "Loud" and issubclass(made, gr.HTML)
    assert not list(Path(gradio_internals.__file__).resolve().parent.glob("*.pyi"))


def test_uploads_lie_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert upload_folder() == tmp_path


def test_a_handler_gets_no_inputs_that_were_refused():
    got: list[Any] = []

    def check(inputs: list[Any]) -> None:
        if inputs == ["bad"]:
            raise ValueError("Not this one.")

    async def answer(value: str) -> None:
        with CheckedBlocks(check, lambda answer: answer) as demo:
            demo.load(got.append, gr.Textbox(), None)
        assert demo.has_launched, "Gradio checks files only in an app that counts as launched"
        await demo.process_api(0, [value])

    asyncio.run(answer("good"))
    with pytest.raises(gr.Error, match="Not this one"):
        asyncio.run(answer("bad"))
    assert got == ["good"]


def test_what_a_handler_answers_is_cleaned_first():
    async def answer() -> Any:
        with CheckedBlocks(lambda _: None, lambda given: f"{given}, cleaned") as demo:
            demo.load(lambda: "fox", None, gr.Textbox())
        return (await demo.process_api(0, []))["data"]

    assert asyncio.run(answer()) == ["fox, cleaned"]


def test_tools_are_called_with_our_own_session_and_checked_arguments(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    monkeypatch.setattr(gradio_internals, "Client", lambda *address, **options: made.append((address, options)))

    class Tools:
        """As Gradio's server of tools is used."""

        def _get_or_create_client(self) -> None:
            pytest.fail("it would have no credentials")

        def _prepare_tool_call_args(self, name: str, arguments: dict[str, Any]) -> str:
            return f"{name} {arguments}"

    def check(inputs: list[Any]) -> None:
        if inputs == [{"file": {"path": "/etc/hostname"}}]:
            raise ValueError("It was not uploaded.")

    demo: Any = SimpleNamespace(mcp_server_obj=Tools())
    call_tools_as(demo, "http://127.0.0.1:1", {"name": "token"}, check)
    tools = demo.mcp_server_obj
    tools._get_or_create_client()
    tools._get_or_create_client()
    [(address, options)] = made
    assert (address, options["httpx_kwargs"]) == (("http://127.0.0.1:1",), {"cookies": {"name": "token"}})
    assert tools._prepare_tool_call_args("draw", {"prompt": "x"}) == "draw {'prompt': 'x'}"
    with pytest.raises(ValueError, match="not uploaded"):
        tools._prepare_tool_call_args("import_adapter", {"file": {"path": "/etc/hostname"}})
