"""Panels: the one way in which a page shows its own HTML.

A panel fills a template with a value. Gradio first lets Handlebars escape the value into the template, and then
runs the *result* as a JavaScript template literal: text such as ``${…}`` that a person typed would be executed,
although every angle bracket in it was escaped. Panels take that power away before the value leaves the server.
No page may use ``gr.HTML`` itself, nor the unescaped forms ``{{{ }}}`` and ``${ }`` in a template.
"""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta

# A click on (or Enter in) anything with data-act tells Python which act it was, and on what.
_REPORT = """element.addEventListener('click', e => { const b = e.target.closest('[data-act]');
if (b && !b.disabled) { trigger('act', {act: b.dataset.act, id: b.dataset.id || ''}); } });"""


def inert(value: Any) -> Any:
    """Escape what a JavaScript template literal would act on, in every text of a nested value.

    >>> inert({"name": "${1}", "sizes": [64]})["name"] == chr(92) + "${1}"
    True
    """
    if isinstance(value, str):
        # Backticks need nothing: Handlebars writes them as character references.
        return value.replace("\\", "\\\\").replace("$", "\\$")
    if isinstance(value, dict):
        return {key: inert(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inert(item) for item in value]
    return value


# Made through ABCMeta, because Gradio's own way of making a component class writes a stub file beside this source.
_InertHTML: type[gr.HTML] = ABCMeta.__new__(
    ComponentMeta, "InertHTML", (gr.HTML,), {"__module__": __name__, "postprocess": lambda _, value: inert(value)}
)


def panel(template: str, value: Any = None, *, script: str = "", elem_id: str) -> Any:
    """Place a Handlebars template with a value of plain dicts, lists, texts and numbers.

    Buttons in the template carry ``data-act`` and ``data-id``; listen with ``panel.act(fn, …)`` and read both
    with :func:`acted`. ``script`` runs once in the browser, with ``element`` and ``props`` at hand.
    """
    assert not any(raw in template for raw in ("{{{", "{{&", "${")), template
    return _InertHTML(
        value, html_template=template, js_on_load=_REPORT + script, apply_default_css=False, elem_id=elem_id,
        container=False, padding=False,
    )   # fmt: skip


def acted(event: gr.EventData) -> tuple[str, str]:
    """What was pressed in a panel: (act, id). Both come from the browser and may be anything."""
    data = event._data if isinstance(event._data, dict) else {}
    return str(data.get("act", "")), str(data.get("id", ""))
