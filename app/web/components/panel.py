"""Panels: the one way in which a page shows its own HTML.

A panel fills a template with a value. Gradio first lets Handlebars escape the value into the template, and then
runs the *result* as a JavaScript template literal: text such as ``${…}`` that a person typed would be executed,
although every angle bracket in it was escaped. Panels take that power away before the value leaves the server.
No page may use ``gr.HTML`` itself, and no template the unescaped forms ``{{{ }}}``, ``{{& }}`` and ``${ }``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from importlib import import_module
from typing import Any

import gradio as gr

from atelier.app.web.components.gradio_internals import component_with, event_data
from atelier.app.web.components.icons import icon
from atelier.app.web.components.urls import root_path
from atelier.training.config.assets import ASSETS

PANELS = ASSETS / "panels"


def escape_literals(value: Any) -> Any:
    """Escape what a JavaScript template literal would act on, in every text of a nested value.

    >>> escape_literals({"name": "${1}", "sizes": [64]})["name"] == chr(92) + "${1}"
    True
    """
    if isinstance(value, str):
        # Backticks need nothing: Handlebars writes them as character references.
        return value.replace("\\", "\\\\").replace("$", "\\$")
    if isinstance(value, dict):
        return {key: escape_literals(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape_literals(item) for item in value]
    return value


_SafeHTML: Any = component_with(escape_literals, gr.HTML, "SafeHTML")


def panel(
    name: str, value: Any = None, *, elem_id: str = "", server_functions: Sequence[Callable[[Any], Any]] = ()
) -> Any:
    """Place the panel ``assets/panels/<name>.html`` with a value of plain dicts, lists, texts and numbers.

    Buttons in the template carry ``data-action`` and ``data-id``; listen with ``panel.action(fn, …)`` and read both
    with :func:`action_of`. ``<name>.js`` beside the template, if there is one, runs once in the browser. It can
    call ``server_functions`` as ``await server.<name>(value)``: they may get anything, and what they answer goes into
    the page as text, not as HTML.
    """
    script = PANELS / f"{name}.js"
    scripts = [PANELS / "panel-events.js", *([script] if script.exists() else [])]
    return _SafeHTML(
        value, html_template=template(name), js_on_load="\n".join(path.read_text(encoding="utf-8") for path in scripts),
        apply_default_css=False, container=False, padding=False, elem_id=elem_id or name,
        server_functions=list(server_functions) or None,
    )   # fmt: skip


def template(name: str) -> str:
    """A panel's Handlebars template, with texts, icons and other templates filled in.

    ``[[jobs.ALL_JOBS]]`` is the constant ``ALL_JOBS`` of ``app/text/jobs.py``, ``[[icon name]]`` an icon, and
    ``[[> name]]`` another template. Addresses of ours begin with a slash, and get what a proxy has before it.
    """
    text = (PANELS / f"{name}.html").read_text(encoding="utf-8")
    text = re.sub(r'(href|action)="/', rf'\1="{root_path()}/', text)
    return re.sub(r"\[\[(> ?|icon )?([\w.-]+)\]\]", _resolve, text)


def _resolve(found: re.Match[str]) -> str:
    if found[1] is None:
        module, _, name = found[2].partition(".")
        return escape(getattr(import_module(f"atelier.app.text.{module}"), name))
    return icon(found[2]) if found[1].startswith("icon") else template(found[2])


def action_of(event: gr.EventData) -> tuple[str, str]:
    """What was pressed in a panel: (action, id). Both come from the browser and may be anything."""
    sent = event_data(event)
    data = sent if isinstance(sent, dict) else {}
    return str(data.get("action", "")), str(data.get("id", ""))


def text_of(event: gr.EventData) -> str:
    """What was typed in a panel's field: anything."""
    sent = event_data(event)
    return str(sent.get("text", "")) if isinstance(sent, dict) else ""
